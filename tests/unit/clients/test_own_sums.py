"""What a device of its own promises of its sums holds, whatever a run's settings claim."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from mobillm_flower import SideTuningClient
from mobillm_flower.clients.own import device_settings
from mobillm_flower.errors import PolicyRefused
from mobillm_flower.tasks.extraction import extraction_spec
from mobillm_flower.tasks.sums import sums_spec
from mobillm_flower.wire import keys
from mobillm_flower.wire.messages import open_description, refusal
from mobillm_flower.wire.sums import SumsRequest, pack_sums_request
from tests.support.tiny_models import save_tiny

RUN: dict[str, Any] = {
    "preset": "analytic",
    "data.label-column": "intent",
    "data.max-samples": 40,
    "task.max-length": 16,
    "activations.projection": 4,
    "privacy.secure-sums": "never",
}
CENTRAL = {"privacy.central-epsilon": 0.001}


class Asked:
    """A device's answer to a server that asks for its sums under a run's settings."""

    def __init__(self, node: dict[str, Any], run: dict[str, Any]) -> None:
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
        self.context = Context(1, 1, {"partition-id": 0, "num-partitions": 20, **node}, RecordDict(), {**RUN, **run})
        self.client = SideTuningClient()
        described = self._ask(RecordDict(), keys.DESCRIBE)
        self.said = refusal(described)
        if self.said is None:
            device, settings = open_description(described), device_settings(self.context)
            spec = extraction_spec(device.backbone, settings, num_blocks=1, num_outputs=device.contract.num_outputs)
            sums = sums_spec(settings, device.contract, spec, capacity=100)
            request = SumsRequest(device.contract, spec, sums, frozenset())
            self.said = refusal(self._ask(pack_sums_request(request), keys.SUM))

    @property
    def counted(self) -> list[float | None]:
        """ε of each release in the device's ledger."""
        (device,) = self.client._devices.values()
        return [row[0] for row in device.folder.ledger._db.execute("SELECT epsilon FROM releases")]

    def _ask(self, content: RecordDict, kind: str) -> Any:
        message = Message(content, dst_node_id=1, message_type=kind)
        message.metadata.__dict__["_message_id"] = "m"
        return self.client.app(message, self.context).content


@pytest.fixture
def node(tmp_path: Path) -> dict[str, Any]:
    return {"device-folder": str(tmp_path / "device"), "backbone.name": str(save_tiny(tmp_path / "tiny", "bert"))}


def with_policy(node: dict[str, Any], text: str) -> dict[str, Any]:
    folder = Path(node["device-folder"])
    folder.mkdir()
    (folder / "policy.yaml").write_text(text)
    return node


@pytest.mark.parametrize("pinned", ["the node config", "the policy's settings", "the policy"])
def test_no_run_takes_a_budget_away_by_claiming_noise_of_its_server(node: dict[str, Any], pinned: str) -> None:
    """The sums leave exact: a server that says it adds noise later is believed where the device says so alone."""
    if pinned == "the node config":
        node |= {"privacy.budget": 8.0}
    else:
        node = with_policy(node, "budget: 8" if pinned == "the policy" else "settings: {privacy.budget: 8}")
    said = Asked(node, CENTRAL).said
    assert said is not None
    assert said.startswith(PolicyRefused.__name__)
    assert "epsilon" in said
    assert Asked(node, {}).said is not None


@pytest.mark.parametrize("agreed", ["the node config", "the policy"])
def test_noise_of_the_server_counts_where_the_device_agrees_to_it(node: dict[str, Any], agreed: str) -> None:
    node |= {"privacy.budget": 8.0, "data.label-column": "intent"}
    if agreed == "the node config":
        node |= {"privacy.central-epsilon": 0.001}
    else:
        node = with_policy(node, "mechanisms: [central]")
    asked = Asked(node, CENTRAL)
    assert asked.said is None
    assert asked.counted == [0.001]


def test_a_device_of_its_own_counts_sums_as_what_they_are_and_a_part_of_a_run_as_the_run_says(
    tmp_path: Path, node: dict[str, Any]
) -> None:
    """Else a budget that the device sets later would believe what this run's server claimed."""
    own = Asked(node, CENTRAL)
    assert own.said is None
    assert own.counted == [None]
    part = Asked({}, {**CENTRAL, "backbone.name": node["backbone.name"], "run.folder": str(tmp_path / "run")})
    assert part.said is None
    assert part.counted == [0.001]


def test_a_device_that_promises_something_adds_up_the_same_samples_or_only_others(node: dict[str, Any]) -> None:
    """Two sums that differ by a sample are that sample, whatever else was asked otherwise."""
    promising = {**node, "privacy.max-releases": 9, "data.label-column": "intent"}
    assert Asked(promising, {"trainer.validation-share": 0.2}).said is None
    assert Asked(promising, {"trainer.validation-share": 0.2, "activations.projection": 5}).said is None
    for changed in ({"trainer.validation-share": 0.4}, {"trainer.validation-share": 0.0}, {"data.max-samples": 30}):
        said = Asked(promising, {"trainer.validation-share": 0.2, "activations.projection": 6, **changed}).said
        assert said is not None
        assert "sums of a part of these samples" in said


def test_a_device_that_promises_nothing_is_summed_again_after_its_samples_changed(node: dict[str, Any]) -> None:
    for share in (0.1, 0.3):
        assert Asked(node, {"trainer.validation-share": share}).said is None
