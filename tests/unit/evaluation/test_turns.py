"""The arithmetic of benchmarks: ratios and spreads come from the repetitions, bars from the ratios."""

import json
import subprocess
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch

import mobillm_flower
from mobillm_flower.core.placement import torch_threads
from mobillm_flower.errors import RunFailed
from mobillm_flower.evaluation.turns import (
    Comparison,
    Report,
    Seconds,
    Threshold,
    compare_seconds,
    run_fresh,
    take_turns,
    timed,
)


def test_sides_are_called_in_turns_and_every_other_turn_backwards() -> None:
    calls = []

    def side(name: str) -> Any:
        def call() -> int:
            calls.append(name)
            return len(calls)

        return call

    found = take_turns({"a": side("a"), "b": side("b")}, 3)
    assert calls == list("abbaab")
    assert found == {"a": [1, 4, 5], "b": [2, 3, 6]}


def test_the_ratio_is_that_of_medians_and_its_spread_that_of_the_turns() -> None:
    found = Comparison("s", [3.0, 1.0, 2.0, 9.0, 4.0], [2.0, 2.0, 2.0, 3.0, 8.0], "bare").to_dict()
    assert found["ours_median"] == 3.0
    assert found["other_median"] == 2.0
    assert found["ratio"] == 1.5
    assert found["ratio_range"] == [0.5, 3.0]  # of 1.5, 0.5, 1, 3, 0.5
    assert found["ratio_quartiles"] == [0.5, 1.5]
    assert found["pairs"] == 5
    assert found["ours"] == [3.0, 1.0, 2.0, 9.0, 4.0]


def test_a_single_turn_has_no_spread() -> None:
    found = Comparison("s", [3.0], [2.0], "bare").to_dict()
    assert found["ratio_quartiles"] == found["ratio_range"] == [1.5, 1.5]


def test_sides_of_different_length_are_no_pairs() -> None:
    with pytest.raises(ValueError, match="shorter"):
        Comparison("s", [1.0, 2.0], [1.0], "bare").to_dict()


@pytest.mark.parametrize(
    ("value", "at_most", "holds"), [(1.0, True, True), (1.1, True, False), (1.0, False, True), (0.9, False, False)]
)
def test_a_bar_holds_at_the_bar_itself(value: float, at_most: bool, holds: bool) -> None:
    assert Threshold(value, 1.0, at_most=at_most).holds is holds
    assert Threshold(value, 1.0, at_most=at_most).to_dict()["rule"] == ("at most" if at_most else "at least")


def test_both_clocks_are_compared() -> None:
    ours, other = [Seconds(4.0, 1.0), Seconds(6.0, 3.0)], [Seconds(2.0, 1.0), Seconds(2.0, 1.0)]
    found = compare_seconds(ours, other, "bare")
    assert found[""].ratio == 2.5
    assert found["_cpu"].ratio == 2.0


def test_a_call_is_timed_on_both_clocks(monkeypatch: pytest.MonkeyPatch) -> None:
    walls, cpus, order = iter([10.0, 12.5]), iter([3.0, 3.25]), []

    def clock() -> float:
        order.append("clock")
        return next(walls)

    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr(time, "process_time", lambda: next(cpus))
    assert timed(lambda: order.append("call"))() == Seconds(2.5, 0.25)
    assert order == ["clock", "call", "clock"]


def test_a_report_says_where_it_comes_from() -> None:
    report = Report("codecs", {"threads": 1})
    report.bars["bits"] = Threshold(4.1, 4.2, at_most=True)
    found = json.loads(json.dumps(report.to_dict()))
    assert found["versions"]["mobillm_flower"] == mobillm_flower.__version__
    assert found["versions"]["torch"].split("+")[0] == torch.__version__.split("+")[0]
    assert found["machine"]["cores"] >= 1
    assert found["bars"]["bits"] == {"value": 4.1, "rule": "at most", "bar": 4.2, "holds": True}


def test_the_commit_is_the_checkouts() -> None:
    root = mobillm_flower.__path__[0]
    answer = subprocess.run(["git", "-C", root, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    inside = subprocess.run(["git", "-C", root, "ls-files", "."], capture_output=True, text=True, check=False)
    if answer.returncode or not inside.stdout:
        pytest.skip("the package is not in a checkout")
    assert Report("codecs", {}).to_dict()["commit"] == answer.stdout.strip()


def test_threads_are_as_before_afterwards() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before


def test_a_process_without_a_figure_is_an_error_with_its_last_words() -> None:
    with pytest.raises(RunFailed, match=r"no_such_bench ended with code 1 and measured nothing: .*No module named"):
        run_fresh("mobillm_flower.no_such_bench")


def test_a_process_that_is_not_done_in_time_is_ended_with_what_it_started(tmp_path: Path) -> None:
    (tmp_path / "sleeps.py").write_text(
        "import pathlib, subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(600)'])\n"
        "pathlib.Path(sys.argv[1]).write_text(str(child.pid))\n"
        "time.sleep(600)\n",
        "utf-8",
    )
    with pytest.raises(RunFailed, match=r"sleeps was not done within 5 s"):
        run_fresh("sleeps", tmp_path / "child", environment={"PYTHONPATH": str(tmp_path)}, seconds=5)
    child = int((tmp_path / "child").read_text("utf-8"))
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
