"""A saved side network that is damaged, or was changed by hand, is refused with the file's and the field's name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from mobillm_flower.errors import UnsupportedError
from mobillm_flower.models.side_tuned import SideTunedModel
from tests.regression.small_runs import SAVED

WHOLE = next(file.parent for file in sorted(SAVED.rglob("config.json")) if (file.parent / "model.safetensors").exists())


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(WHOLE, tmp_path / "side_network"))


@pytest.mark.parametrize("field", ["contract", "backbones", "specs"])
@pytest.mark.parametrize("value", [None, 7, "x", [], {"x": 1}, "missing"])
def test_a_damaged_field_is_named(folder: Path, field: str, value: object) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text("utf-8"))
    if value == "missing":
        del config[field]
    else:
        config[field] = value
    file.write_text(json.dumps(config), "utf-8")
    with pytest.raises(UnsupportedError, match=rf"config\.json: {field}"):
        SideTunedModel.from_pretrained(folder)


@pytest.mark.parametrize(
    ("name", "field", "values"),
    [
        ("config.json", "side_network", {"width": 10**30}),
        ("config.json", "side_network", {"num_blocks": "x"}),
        ("config.json", "side_network", {"name": "none such"}),
        ("config.json", "prediction", {"more": 1}),
        ("model.safetensors", "weights", None),
    ],
)
def test_a_damaged_file_is_named_with_its_field(
    folder: Path, name: str, field: str, values: dict[str, object] | None
) -> None:
    file = folder / name
    if values is None:
        file.write_bytes(file.read_bytes()[:-7])
    else:
        config = json.loads(file.read_text("utf-8"))
        file.write_text(json.dumps({**config, field: {**config[field], **values}}), "utf-8")
    (info,) = json.loads((WHOLE / "config.json").read_text("utf-8"))["backbones"].values()
    with pytest.raises(UnsupportedError, match=rf"{name}: {field}"):
        SideTunedModel.from_pretrained(folder, backbone=str(SAVED / info["name"]))
