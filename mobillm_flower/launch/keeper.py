"""Runs a program, and ends it and all that it started when the process that asked for it is gone, however that went.

It is run by its path, so that it starts in a tenth of a second: it imports nothing of this package. A pipe tells: its
other end closes with the process that holds it, also when that is killed or its terminal is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading

import psutil

_SECONDS = 5


def end_family(pid: int) -> None:
    """End a process and everything it started, by process id."""
    family: list[psutil.Process] = []
    with contextlib.suppress(psutil.NoSuchProcess):
        parent = psutil.Process(pid)
        family = [*parent.children(recursive=True), parent]
    for member in family:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=_SECONDS)
    for member in alive:
        with contextlib.suppress(psutil.NoSuchProcess):
            member.kill()


def keep(pipe: int, command: list[str]) -> int:
    """Run a program until it ends or the pipe is closed; returns its exit code, as a shell does."""
    for number in (signal.SIGINT, signal.SIGHUP):  # the program gets its own; this process waits for it
        signal.signal(number, lambda *_: None)
    child = subprocess.Popen(command)

    def wait_for_the_end() -> None:
        os.read(pipe, 1)
        end_family(child.pid)

    threading.Thread(target=wait_for_the_end, daemon=True).start()
    code = child.wait()
    return code if code >= 0 else 128 - code


if __name__ == "__main__":
    sys.exit(keep(int(sys.argv[1]), sys.argv[2:]))
