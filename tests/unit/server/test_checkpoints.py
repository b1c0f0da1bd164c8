"""A checkpoint that is damaged is refused by name, whatever the damage is."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mobillm_flower.errors import CacheError
from mobillm_flower.server.checkpoints import read_checkpoint
from tests.support.caches import make_plan, make_spec


@pytest.mark.parametrize("content", [b"", b"torn", b"PK\x03\x04 and no more", bytes(200)])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "trainer.pt"
    file.write_bytes(content)
    with pytest.raises(CacheError, match=r"trainer\.pt cannot be read"):
        read_checkpoint(file, make_plan([make_spec()]).options)


@pytest.mark.parametrize("saved", [{}, {"options": {}}, {"options": {}, "position": {"speed": 1}}, [1, 2]])
def test_a_checkpoint_of_another_form_is_refused(tmp_path: Path, saved: object) -> None:
    file = tmp_path / "trainer.pt"
    torch.save(saved, file)
    with pytest.raises(CacheError, match=r"trainer\.pt cannot be read"):
        read_checkpoint(file, make_plan([make_spec()]).options)
