"""The devices' secret rotation: what it keeps, who is refused."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from mobillm_flower.errors import SettingsError
from mobillm_flower.privacy.mixing import MixingKey, mixing_key
from tests.support.present import present

KEY, OTHER = MixingKey(bytes(range(32))), MixingKey(bytes(32))


def write(folder: Path, text: Any, mode: int = 0o600) -> Any:
    file = folder / "key"
    file.write_text(text)
    os.chmod(file, mode)
    return file


def test_a_rotation_keeps_lengths_and_angles_and_comes_back() -> None:
    torch.manual_seed(0)
    rows, sides = torch.randn(4, 3, 2, 16), torch.randn(5, 7)
    mixed = KEY.activations(rows)
    assert torch.allclose(
        mixed.flatten(0, 2) @ mixed.flatten(0, 2).T, rows.flatten(0, 2) @ rows.flatten(0, 2).T, atol=1e-4
    )
    assert not torch.allclose(mixed, rows, atol=0.5)
    assert torch.allclose(KEY.outputs(KEY.targets(sides)), sides, atol=1e-5)


def test_the_square_loss_is_the_same_under_it() -> None:
    torch.manual_seed(1)
    side, delta = torch.randn(6, 5), torch.randn(6, 5)
    assert torch.allclose(
        (KEY.targets(delta) - KEY.targets(side)).square().sum(1), (delta - side).square().sum(1), atol=1e-4
    )


def test_purposes_sizes_and_keys_have_nothing_in_common() -> None:
    eye = torch.eye(8)
    rotations = [KEY.activations(eye), KEY.targets(eye), OTHER.activations(eye), OTHER.targets(eye)]
    for i, one in enumerate(rotations):
        for other in rotations[i + 1 :]:
            assert (one - other).abs().max() > 0.1
    assert len({KEY.name, OTHER.name}) == 2
    assert KEY.name == MixingKey(bytes(range(32))).name


def test_key_files(tmp_path: Path) -> None:
    file = write(tmp_path, bytes(range(32)).hex() + "\n")
    assert MixingKey.read(file).name == KEY.name
    assert present(mixing_key(KEY.name, str(file))).name == KEY.name
    assert mixing_key("", str(file)) is None
    with pytest.raises(SettingsError, match=f"holds the key {KEY.name}, privacy.mixing=0123 is another"):
        mixing_key("0123", str(file))
    with pytest.raises(SettingsError, match=r"needs privacy.mixing-key"):
        mixing_key(KEY.name, "")
    with pytest.raises(SettingsError, match=r"cannot be read \(FileNotFoundError\); make one with"):
        MixingKey.read(tmp_path / "gone")
    with pytest.raises(SettingsError, match="does not hold 64 hexadecimal digits"):
        MixingKey.read(write(tmp_path, "00ff"))
    with pytest.raises(SettingsError, match="can be read by others; set its mode to 0600"):
        MixingKey.read(write(tmp_path, bytes(32).hex(), 0o644))
