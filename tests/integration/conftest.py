"""What runs of these tests share."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from tests.support.small_runs import make_config
from tests.support.tiny_models import save_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., dict[str, Any]]:
    """`make_config` with a tiny random model, for what does not depend on how well it predicts."""
    backbone = save_tiny(tmp_path_factory.mktemp("tiny") / "bert", "bert")
    return partial(make_config, backbone__name=str(backbone), backbone__layers=0, backbone__device="cpu")
