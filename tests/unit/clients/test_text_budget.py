"""What a device promises of a text holds whatever runs ask: draws of it, and metrics on what it learns from."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, RecordDict

from mobillm_flower.clients.device import Device
from mobillm_flower.clients.own import device_data, device_settings
from mobillm_flower.clients.releases import make_window
from mobillm_flower.privacy.device_folder import DeviceFolder
from mobillm_flower.privacy.ledger import Limits
from mobillm_flower.tasks.extraction import extraction_spec
from tests.support.tiny_models import save_tiny

JOINT: dict[str, Any] = {"privacy.joint-epsilon": 2.0, "privacy.budget": 2.0, "activations.projection": 4}
RUN: dict[str, Any] = {
    "data.label-column": "intent",
    "activations.pivot": "mean",
    "activations.codec": "int8",
    "loss.name": "logit",
    "task.max-length": 16,
    "side-network.name": "discriminant",
    "data.max-samples": 8,
}
Release = Callable[..., int]


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(save_tiny(tmp_path_factory.mktemp("backbone"), "bert"))


def open_device(folder: Path, node: dict[str, Any], run: dict[str, Any]) -> Device:
    node = {"partition-id": 0, "num-partitions": 4, "device-folder": str(folder), **node}
    context = Context(run_id=1, node_id=1, node_config=node, state=RecordDict(), run_config={**RUN, **run})
    settings = device_settings(context)
    private = settings.privacy
    owned = DeviceFolder(folder, limits=Limits(max_releases=private.max_releases, budget=private.budget))
    return Device(settings, device_data(settings, context, None), owned)


@pytest.fixture
def release(tmp_path: Path, backbone: str) -> Release:
    """Let the device at `folder` send what a run asks; returns how many samples."""

    def ask(folder: str = "device", node: dict[str, Any] | None = None, **run: Any) -> int:
        named = {key.replace("__", ".").replace("_", "-"): value for key, value in run.items()}
        device = open_device(tmp_path / folder, {"backbone.name": backbone, **(JOINT if node is None else node)}, named)
        spec = extraction_spec(device.backbone.info, device.settings, num_blocks=1, num_outputs=1)
        made = make_window(device, spec, held=frozenset(), size=10**6, max_bytes=10**9)
        device.folder.ledger.acknowledge([sample.release for sample in made.samples])
        assert len(made.samples) + made.refused == made.total
        device.folder.close()
        return len(made.samples)

    return ask


def intents() -> list[str]:
    file = Path(__file__).parents[3] / "mobillm_flower/tasks/data/phone_messages_train.jsonl"
    return sorted({json.loads(line)["intent"] for line in file.read_text().splitlines()})


@pytest.mark.parametrize(
    "again",
    [
        {"task__labels": ",".join(reversed(intents()))},
        {"task__labels": ",".join([*intents(), "another"])},
        {"data__pair_column": "text"},
        {"data__pair_column": "persona"},
        {"data__pair_column": "text", "task__kind": "pairs"},
        {"data__text_column": "persona", "data__pair_column": "text"},
        {"data__text_column": "persona"},  # another text of the same rows
        {"data__label_column": "persona", "data__test_split": "train"},
        {"task__prompt": "Say: {text}"},
        {"task__max_length": 12},
        {"activations__pivot": "last"},
        {"activations__codec": "fp16"},
        {"data__test_split": "train", "data__max_samples": 9, "data__seed": 0},
    ],
    ids=lambda run: ", ".join(run),
)
def test_no_run_buys_a_second_draw_of_a_text(release: Release, again: dict[str, Any]) -> None:
    assert release() == 8
    assert release(**again) == (1 if again.get("data__max_samples") == 9 else 0)
    assert release() == 0


def test_a_number_of_releases_holds_for_the_text_too(release: Release) -> None:
    node = {"privacy.max-releases": 2}
    found = [release(node=node, task__labels=",".join(intents()[i:] + intents()[:i])) for i in range(4)]
    assert found == [8, 8, 0, 0]


def test_rows_that_repeat_a_text_share_its_budget(release: Release, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    lines = [{"text": f"text {i % 2}" + " " * i, "intent": "ab"[i % 2], "note": f"{i}"} for i in range(6)]
    for split in ("train", "test"):
        (tmp_path / "data" / f"{split}.jsonl").write_text("\n".join(map(json.dumps, lines)))
    node = {**JOINT, "data.source": str(tmp_path / "data"), "partition-id": 0, "num-partitions": 1}
    assert release(node=node) == 2
    unbounded = {"data.source": str(tmp_path / "data"), "num-partitions": 1}
    assert release(folder="another", node=unbounded) == 6  # where nothing is promised, nothing is kept back


def test_training_texts_are_never_evaluated_on_where_anything_is_promised(tmp_path: Path, backbone: str) -> None:
    node = {"backbone.name": backbone, **JOINT, "data.test-split": "train"}
    device = open_device(tmp_path / "device", node, {"data.max-samples": 0})
    assert len(device.data.test) == len(device.data.train) == 300
    assert len(device.test) == device.describe().num_test == 0
    device.folder.close()
    open_ = open_device(tmp_path / "open", {"backbone.name": backbone}, {"data.test-split": "train"})
    assert len(open_.test) == 300  # nothing is promised
    open_.folder.close()


def test_what_was_released_once_is_never_evaluated_on(release: Release, tmp_path: Path, backbone: str) -> None:
    assert release(data__max_samples=0) == 300
    node = {"backbone.name": backbone, **JOINT}
    turned = open_device(tmp_path / "device", node, {"data.train-split": "test", "data.test-split": "train"})
    assert len(turned.data.test) == 300
    assert len(turned.test) == 0
    turned.folder.close()


def test_what_exact_metrics_were_on_is_not_released_under_an_epsilon(
    release: Release, tmp_path: Path, backbone: str
) -> None:
    class Constant:
        def evaluate(self, samples: Any) -> float:
            return 0.25

    device = open_device(tmp_path / "device", {"backbone.name": backbone, **JOINT}, {})
    assert device.measure(Constant()) == 0.25  # type: ignore[arg-type]
    device.folder.close()
    assert release(data__train_split="test", data__max_samples=0) == 0


def test_a_metric_is_noised_where_settings_say_so(tmp_path: Path, backbone: str) -> None:
    class Constant:
        def evaluate(self, samples: Any) -> float:
            return 0.5

    device = open_device(tmp_path / "device", {"backbone.name": backbone}, {"privacy.metric-epsilon": 0.1})
    found = Counter(device.measure(Constant()) for _ in range(20))  # type: ignore[arg-type]
    assert len(found) > 3
    assert not device.exact_metrics  # nor does any other leave it without noise
    assert all(0 <= value <= 1 and round(value * 110) / 110 == value for value in found)
    device.folder.close()
