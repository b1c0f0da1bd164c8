"""Programs that are started here, and that end with us."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import FrameType

from mobillm_flower.launch import keeper

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # they are raised as exceptions, anywhere


@contextlib.contextmanager
def started(
    command: list[str], environment: Mapping[str, str], log: Path | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a program; it and all that it started are ended afterwards, also when this process is killed.

    Parameters
    ----------
    command : list of str
        The program and its arguments.
    environment : mapping of str to str
        Its environment.
    log : Path, optional
        Its output is appended here, and the keyboard does not reach it; by default it shares this process's terminal.
    """
    process: subprocess.Popen[bytes] | None = None
    read, write = os.pipe()
    kept = [sys.executable, "-I", keeper.__file__, str(read), *command]
    try:
        with _signals_later(), log.open("ab") if log else contextlib.nullcontext() as output:
            process = subprocess.Popen(
                kept,
                env=dict(environment),
                stdout=output,
                stderr=output,
                start_new_session=log is not None,
                pass_fds=[read],
            )
        yield process
    finally:
        if process is not None:
            end(process)
        os.close(read)
        os.close(write)


def end(process: subprocess.Popen[bytes]) -> None:
    """End a process and everything it started, by process id."""
    keeper.end_family(process.pid)
    process.wait()


@contextlib.contextmanager
def _signals_later() -> Iterator[None]:
    """Let signals wait: one that came inside `Popen` would leave a program that runs and that nobody ends."""
    if threading.current_thread() is not threading.main_thread():  # only the main thread gets them
        yield
        return
    arrived: list[tuple[int, FrameType | None]] = []
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = {number: handler for number, handler in handlers.items() if callable(handler)}
    for number in ours:
        signal.signal(number, lambda number, frame: arrived.append((number, frame)))
    try:
        yield
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        for came, frame in arrived:
            ours[signal.Signals(came)](came, frame)
