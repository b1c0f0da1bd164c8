from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.overhead.secure_sums import measure


def test_bytes_a_device_do_not_grow_with_the_fleet_and_every_groups_sum_is_exact(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("os.fsync", lambda _file: None)
    few, more = (measure(devices, 10, words=50, folder=tmp_path / str(devices)) for devices in (10, 40))
    assert few.exact
    assert more.exact
    assert (few.upload_bytes, few.download_bytes) == (more.upload_bytes, more.download_bytes)
    assert few.dropped > 0
