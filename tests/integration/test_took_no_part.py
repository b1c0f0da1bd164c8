"""Devices and rows that take no part in a run: the table says how many and why, the exit code that devices did not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord

from mobillm_flower import SideTuningClient, launch, load_settings, make_strategy
from mobillm_flower.launch import RunOutcome
from tests.support.cli import mobillm
from tests.support.local_grid import LocalGrid
from tests.support.runs import tiny_config
from tests.support.tiny_models import save_tiny

QUICKSTART = Path(__file__).parents[2] / "examples" / "quickstart"


@pytest.mark.parametrize(("choice", "code", "refused"), [("refuse", 3, 2), ("drop", 0, 0)])
def test_the_table_and_the_exit_code_say_what_took_no_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, choice: str, code: int, refused: int
) -> None:
    rows = [(f"the {word} sat", label) for word in ("cat", "dog", "mat") for label in ("bad", "good")]
    for split, bad_users in (("train", ()), ("test", ("ben", "cem"))):
        lines = ["text,label,user"]
        for user in ("ana", "ben", "cem"):
            lines += [f"{text},{'unknown' if user in bad_users else label},{user}" for text, label in rows]
        (tmp_path / f"{split}.csv").write_text("\n".join(lines) + "\n", "utf-8")
    cut = {"data__partition": "natural", "data__partition_column": "user", "data__num_devices": 3}
    read = {
        "data__label_column": "label",
        "data__source": tmp_path,
        "task__labels": "bad,good",
        "data__bad_rows": choice,
    }
    config = tiny_config(tmp_path / "run", save_tiny(tmp_path / "backbone", "bert"), **cut, **read)
    config["data.source"] = str(tmp_path)

    def run_app(*_arguments: Any, **_named: Any) -> RunOutcome:
        nodes = [{"partition-id": i, "num-partitions": 3} for i in range(3)]
        strategy = make_strategy(load_settings(config))
        strategy.poll_s = 0.0
        strategy.start(LocalGrid(SideTuningClient().app, nodes, config), ArrayRecord())
        return RunOutcome(tmp_path / "run", "finished:completed", 1.0, "1")

    monkeypatch.setattr(launch, "run_app", run_app)
    shown = mobillm("run", QUICKSTART, "--out", tmp_path / "run", "--no-references")
    assert shown.exit_code == code
    rows_shown = [" ".join(line.split()) for line in shown.stdout.splitlines()]
    not_used = [line for line in rows_shown if line.startswith("devices not used")]
    left_out = [line for line in rows_shown if line.startswith("rows left out")]
    if refused:
        assert not_used[0].startswith("devices not used 2")
        assert "6 test rows with a label that is none of the classes" in not_used[0]
    else:
        assert not not_used
        assert left_out[0].startswith("rows left out 12")
