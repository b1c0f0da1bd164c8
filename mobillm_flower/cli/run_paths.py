"""Run folders as the commands are given them."""

from __future__ import annotations

from pathlib import Path

from mobillm_flower.cli.output import relative
from mobillm_flower.errors import CacheError, RunFailed, SettingsError, UnsupportedError
from mobillm_flower.runs.folder import RunFolder


def require_run(path: Path) -> Path:
    """Return a run's folder; raises RunFailed where it is none."""
    path = path.expanduser()
    if not path.is_dir():
        raise RunFailed(f"{path} is no folder; name a run's folder, such as runs/20260101-120000")
    return path


def run_settings(path: Path) -> Path:
    """Return the file of a run's settings; raises SettingsError where there is none."""
    file = RunFolder(require_run(path)).settings
    if not file.is_file():
        raise SettingsError(f"{relative(path)} holds no {file.name}; name a run's folder")
    return file


def run_cache(path: Path) -> Path:
    """Return the file of a run's cache; raises CacheError where there is none."""
    file = RunFolder(require_run(path)).cache
    if not file.is_file():
        raise CacheError(f"{relative(path)} holds no {file.name}; name the folder of a run that has begun")
    return file


def side_network(path: Path) -> Path:
    """Return the folder of a side network: the one named, or that of a run.

    Raises
    ------
    UnsupportedError
        There is none (yet), with what became of the run.
    """
    path = path.expanduser()
    run = RunFolder(path)
    if run.side_config.is_file():
        return run.side_network
    if (path / run.side_config.name).is_file():
        return path
    if not path.is_dir():
        raise UnsupportedError(f"{path} is no folder; name a run's folder, or that of a side network")
    raise UnsupportedError(f"{relative(path)} holds no side network{_reason(path)}")


def _reason(path: Path) -> str:
    from mobillm_flower.runs.events import Finished
    from mobillm_flower.runs.record import read_run

    try:
        run = read_run(path)
    except RunFailed:
        log = RunFolder(path).flower_log
        return f": the run never began, see {relative(log)}" if log.is_file() else "; name a run's folder, or its own"
    finished = run.session.last(Finished)
    if finished and finished.outcome != "completed":
        return f": the run failed. {finished.reason}".rstrip()
    if RunFolder(path).holder() is not None:
        return " yet: the run goes on; it is saved when training has ended"
    return ": the run was interrupted; start it again with the same settings and run folder, and it goes on"
