"""A side network that a server sends is made only where it is what was agreed on, and its weights came with it."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from flwr.app import Array

from mobillm_flower.core.side_networks import AlignmentSpec, SideNetworkConfig
from mobillm_flower.errors import MismatchError
from mobillm_flower.wire import keys
from mobillm_flower.wire.contract import ExtractionSpec, TaskContract
from mobillm_flower.wire.messages import open_evaluation, pack_evaluation
from tests.support.packets import make_contract, make_spec
from tests.unit.wire.test_messages import TYPES, agreed, evaluation


def test_nothing_is_made_of_a_side_network_before_the_device_agrees(monkeypatch: pytest.MonkeyPatch) -> None:
    content = pack_evaluation(evaluation())

    def refuse(contract: TaskContract, spec: ExtractionSpec) -> None:
        assert (contract, spec) == (make_contract(), make_spec())
        raise MismatchError("it does not agree")

    monkeypatch.setattr(SideNetworkConfig, "build", lambda _self: pytest.fail("it was built"))
    with pytest.raises(MismatchError, match="it does not agree"):
        open_evaluation(content, refuse)


@pytest.mark.parametrize(
    ("changes", "columns"),
    [
        ({"num_blocks": 100_000}, ()),
        ({"types": {"ab" * 32: AlignmentSpec(1 << 40, 1)}}, ()),
        ({"types": {"ab" * 32: AlignmentSpec(8, 1, layers_above=100_000)}}, ()),
        ({"types": {**TYPES, "cd" * 32: AlignmentSpec(8, 1)}}, ()),
        ({"num_outputs": 4}, ()),
        ({"num_outputs": 1 << 40}, ()),
        ({"name": "o-lora", "tasks": (1,) * 100_000, "num_outputs": 100_000}, (0, 3, 0)),
    ],
)
def test_a_side_network_that_was_not_agreed_on_is_not_built(
    changes: dict[str, Any], columns: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small message would else keep a device busy, or take its memory."""
    request = evaluation()
    side = dataclasses.replace(request.side_config, **changes)
    content = pack_evaluation(dataclasses.replace(request, side_config=side, columns=columns))
    monkeypatch.setattr(SideNetworkConfig, "build", lambda _self: pytest.fail("it was built"))
    with pytest.raises(MismatchError, match=r"none of this task and extraction|fewer weights than tasks"):
        open_evaluation(content, agreed)


@pytest.mark.parametrize("changes", [{"width": 1 << 20}, {"bottleneck": 1 << 30}])
def test_a_side_network_takes_no_more_room_than_the_bytes_that_came(changes: dict[str, Any]) -> None:
    request = evaluation()
    side = dataclasses.replace(request.side_config, identity_alignment=True, **changes)
    content = pack_evaluation(dataclasses.replace(request, side_config=side))
    with pytest.raises(MismatchError, match=r"weights of another size|has one of another form"):
        open_evaluation(content, agreed)


def test_weights_of_another_size() -> None:
    content: Any = pack_evaluation(evaluation())
    content[keys.SIDE_NETWORK]["gates"] = Array(np.zeros(7, np.float32))
    with pytest.raises(MismatchError, match="weights of another size than its configuration names"):
        open_evaluation(content, agreed)
