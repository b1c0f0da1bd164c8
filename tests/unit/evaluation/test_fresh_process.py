"""Work in a fresh process: what it says when it fails, and that it is ended with what it started."""

import time
from pathlib import Path

import psutil
import pytest

from mobillm_flower.errors import RunFailed
from mobillm_flower.evaluation.fresh_process import run_fresh


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
    until = time.monotonic() + 60
    while runs(child) and time.monotonic() < until:  # a signal takes its time
        time.sleep(0.01)
    assert not runs(child)


def runs(process: int) -> bool:
    try:
        return psutil.Process(process).status() not in (psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD)
    except psutil.NoSuchProcess:
        return False
