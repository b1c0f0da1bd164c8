"""A device answers the requests of the strategy that it agreed to, and no other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from mobillm_flower import SideTuningClient
from mobillm_flower.clients.own import device_settings
from mobillm_flower.tasks.extraction import extraction_spec
from mobillm_flower.tasks.sums import sums_spec
from mobillm_flower.wire import keys
from mobillm_flower.wire.masked import with_message
from mobillm_flower.wire.messages import WindowRequest, open_description, pack_request, refusal
from mobillm_flower.wire.sums import SumsRequest, pack_sums_request
from tests.support.tiny_models import save_tiny

CONFIG: dict[str, Any] = {
    "data.label-column": "intent",
    "data.max-samples": 20,
    "task.max-length": 16,
}


@pytest.mark.parametrize(
    ("preset", "answered", "refused"),
    [("pae", "samples", ["sums", "masked sums"]), ("analytic", "sums", ["samples"])],
)
def test_requests_of_another_strategy_are_refused(
    tmp_path: Path, preset: str, answered: str, refused: list[str]
) -> None:
    """A device that agreed to sums alone would else send its samples one by one."""
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 1, 1, 1
    node: dict[str, Any] = {"partition-id": 0, "num-partitions": 20, "device-folder": str(tmp_path / "device")}
    node["backbone.name"] = str(save_tiny(tmp_path / "tiny", "bert"))
    context = Context(1, 1, node, RecordDict(), {**CONFIG, "preset": preset})
    app = SideTuningClient().app

    def ask(content: RecordDict, kind: str) -> Any:
        message = Message(content, dst_node_id=1, message_type=kind)
        message.metadata.__dict__["_message_id"] = "m"
        return app(message, context).content

    device, settings = open_description(ask(RecordDict(), keys.DESCRIBE)), device_settings(context)
    spec = extraction_spec(device.backbone, settings, num_blocks=1, num_outputs=device.contract.num_outputs)
    asked = SumsRequest(device.contract, spec, sums_spec(settings, device.contract, spec, capacity=100), frozenset())
    requests = {
        "samples": (pack_request(WindowRequest(device.contract, spec, 1, 8, 1 << 20, frozenset())), keys.EXTRACT),
        "sums": (pack_sums_request(asked), keys.SUM),
        "masked sums": (with_message(pack_sums_request(asked), b"message"), keys.SECURE_SUM),
    }
    assert refusal(ask(*requests[answered])) is None
    for name in refused:
        said = refusal(ask(*requests[name]))
        assert (
            said
            == f"PolicyRefused: this device takes part in a run with strategy={preset}, and the server asks for "
            + ("samples" if name == "samples" else "sums")
        )
