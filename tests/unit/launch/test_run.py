"""What `mobillm run` asks of Flower's simulation."""

from __future__ import annotations

import pytest

from mobillm_flower.config import load_settings
from mobillm_flower.launch.run import _federation


@pytest.mark.parametrize(
    ("share", "cores", "expected"),
    [
        (0.0, 8, "num-supernodes=20 client-resources-num-cpus=8 init-args-num-cpus=8"),
        (0.25, 8, "num-supernodes=20 client-resources-num-cpus=2 init-args-num-cpus=8 client-resources-num-gpus=0.25"),
        (0.1, 4, "num-supernodes=20 client-resources-num-cpus=1 init-args-num-cpus=4 client-resources-num-gpus=0.1"),
        (2.0, 8, "num-supernodes=20 client-resources-num-cpus=8 init-args-num-cpus=8 client-resources-num-gpus=2.0"),
    ],
)
def test_as_many_devices_run_at_a_time_as_share_a_gpu(
    monkeypatch: pytest.MonkeyPatch, share: float, cores: int, expected: str
) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: cores)
    assert _federation(load_settings({"backbone.gpu-share": share, "data.num-devices": 20})) == expected
