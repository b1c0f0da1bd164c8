"""A program that was started ends with us, whenever the signal comes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import psutil
import pytest

from mobillm_flower.launch import processes


@pytest.fixture
def _terminated_is_an_exception() -> Iterator[None]:
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    yield
    signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_terminated_is_an_exception")
def test_a_signal_that_comes_while_a_program_starts_ends_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    born: list[subprocess.Popen[bytes]] = []

    class Interrupted(subprocess.Popen[bytes]):
        """The signal arrives when the program runs and `Popen` has not returned."""

        def __init__(self, *args: object, **kwargs: object) -> None:
            super().__init__(*args, **kwargs)  # type: ignore[call-overload]
            born.append(self)
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(subprocess, "Popen", Interrupted)
    command = [sys.executable, "-c", "import time; time.sleep(60)"]
    with pytest.raises(SystemExit, match="143"), processes.started(command, os.environ):
        pytest.fail("the signal was lost")
    assert not psutil.pid_exists(born[0].pid)


@pytest.mark.usefixtures("_terminated_is_an_exception")
def test_handlers_are_as_before_once_the_program_runs() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with processes.started([sys.executable, "-c", "pass"], os.environ):
        assert signal.getsignal(signal.SIGTERM) is before


_STARTS = """
import os, subprocess, sys
from mobillm_flower.launch.processes import started
sleeps = [sys.executable, "-c", "import time; time.sleep(60)"]
command = [sys.executable, "-c", f"import subprocess; subprocess.run({sleeps!r})"]
with started(command, os.environ) as process:
    sys.stdout.write("ready\\n")
    sys.stdout.flush()
    process.wait()
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGHUP, signal.SIGTERM])
def test_what_was_started_ends_with_us_however_we_end(number: signal.Signals) -> None:
    """Also by a signal that nobody handles, and with the children of what was started."""
    process = subprocess.Popen([sys.executable, "-c", _STARTS], stdout=subprocess.PIPE, start_new_session=True)
    assert process.stdout is not None
    process.stdout.readline()
    family: list[psutil.Process] = []
    while len(family) < 3:  # the keeper, the program, and what that started
        family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(number)
    process.wait()
    process.stdout.close()
    _, alive = psutil.wait_procs(family, timeout=20)
    assert not alive
