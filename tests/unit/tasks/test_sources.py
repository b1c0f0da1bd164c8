"""Where rows come from: a setting that names what a source has not is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from mobillm_flower import load_settings
from mobillm_flower.errors import SettingsError
from mobillm_flower.tasks.sources import load_splits


def test_a_subset_of_a_folder_that_lists_none_is_refused_and_not_ignored(tmp_path: Path) -> None:
    for split in ("train", "test"):
        tmp_path.joinpath(f"{split}.csv").write_text("text,label\na,x\nb,y\n", "utf-8")
    settings = load_settings(overrides=[f"data.source={tmp_path}", "data.subset=rte"])
    with pytest.raises(SettingsError, match=r"data\.subset='rte' names a configuration.*leave data.subset empty"):
        load_splits(settings.data)
