"""Work in a fresh process, and the memory that one takes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil

from mobillm_flower.errors import RunFailed


def run_fresh(
    module: str, *arguments: object, environment: Mapping[str, str] | None = None, seconds: float | None = None
) -> dict[str, Any]:
    """Run a module in a fresh process and return the JSON of its last line.

    Parameters
    ----------
    module, arguments
        What `python -m` is given.
    environment : mapping, optional
        Variables besides this process's.
    seconds : float or None
        After these it is ended, and all that it started.

    Raises
    ------
    RunFailed
        It ended without one, and its last words are in the message; or it was not done in time.
    """
    command = [sys.executable, "-m", module, *map(str, arguments)]
    started = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, **(environment or {})},
    )
    with started as process:
        try:
            output, words = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired as error:
            for one in [*psutil.Process(process.pid).children(recursive=True), process]:
                one.kill()
            raise RunFailed(f"{module} was not done within {seconds:g} s") from error
        except BaseException:
            process.kill()
            raise
    try:
        result = json.loads(output.strip().splitlines()[-1])
    except (IndexError, ValueError) as error:
        words = words.strip()[-300:] or "nothing was said"
        raise RunFailed(f"{module} ended with code {process.returncode} and measured nothing: {words}") from error
    if process.returncode or not isinstance(result, dict):
        raise RunFailed(f"{module} ended with code {process.returncode}: {words.strip()[-300:]}")
    return result


def status_bytes(name: str) -> int:
    """Return a size of this process from Linux's /proc/self/status, e.g. VmHWM (peak resident set) or RssAnon."""
    status = Path("/proc/self/status").read_text()
    return int(status.split(f"{name}:")[1].split()[0]) * 1024
