"""A run from its start to its end, the same for side-tuning and for the baselines: folder, log, cache, outcome."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from flwr.serverapp import Grid

from mobillm_flower.config import Settings, load_settings, run_folder, to_yaml
from mobillm_flower.config.describe import setting_values, value_text
from mobillm_flower.errors import MismatchError, MobiLLMError, RunFailed, SettingsError
from mobillm_flower.runs.events import Finished, Started
from mobillm_flower.runs.files import private_files
from mobillm_flower.runs.folder import RunFolder
from mobillm_flower.server import ActivationCache
from mobillm_flower.server.plan import TrainingPlan
from mobillm_flower.strategies.said import copied_log, log_result
from mobillm_flower.strategies.trackers import tracked


class StartedRun:
    """A run whose folder this process holds.

    Parameters
    ----------
    folder : RunFolder
        Held by the caller.
    settings : Settings
        The run's.
    keep_log : callable
        From `RunFolder.unchanged_on_error`.
    """

    def __init__(self, folder: RunFolder, settings: Settings, keep_log: Callable[[], None]) -> None:
        self.folder, self._settings, self._keep_log = folder, settings, keep_log
        self._resources = contextlib.ExitStack()
        self._last_words: list[Callable[[], None]] = []
        self._goes_on = False
        if not folder.settings.exists():
            self._write_settings()

    def open_cache(self) -> ActivationCache:
        """Open the run's cache until the run ends."""
        cache = ActivationCache(self.folder.cache, quota_bytes=self._settings.cache.quota_mib << 20)
        return self._resources.enter_context(contextlib.closing(cache))

    def plan(self, cache: ActivationCache) -> TrainingPlan | None:
        """Return the plan that the run goes on with; a start that brought no sample is made anew."""
        stored = TrainingPlan.of(cache) if cache.devices() or self.folder.checkpoint.exists() else None
        self._goes_on = stored is not None
        return stored

    def keep_settings(self) -> None:
        """Write settings.yaml, and keep the log from here on.

        Only when nothing can refuse the settings any more: a refused start changes nothing in the folder of a run from
        before. Why it was refused is in Flower's log, and what `mobillm run` says.
        """
        self._write_settings()
        self._keep_log()

    def _write_settings(self) -> None:
        self.folder.settings.write_text(to_yaml(self._settings), "utf-8")

    @contextlib.contextmanager
    def naming_changes(self) -> Iterator[None]:
        """Name the settings of a run that is gone on with which have changed, in an error that they may have caused."""
        try:
            yield
        except (MismatchError, RunFailed) as error:
            if not self._goes_on or not (changed := self._changed()):
                raise
            raise type(error)(
                f"{error}. The run in {self.folder.path} was started with other settings: {'; '.join(changed)}. To go "
                "on with it, give these again; otherwise use another run.folder"
            ) from error

    def _changed(self) -> list[str]:
        try:
            before = setting_values(load_settings(file=self.folder.settings))
        except SettingsError:  # written by a version with other settings
            return []
        now = setting_values(self._settings)
        return [
            f"{key}={value_text(before[key])} (now {value_text(value) or 'empty'})"
            for key, value in now.items()
            if before[key] != value and not key.startswith("run.")
        ]

    def before_the_end(self, function: Callable[[], None]) -> None:
        """Call a function before the end is logged, however the run ends."""
        self._last_words.append(function)

    def finish(self, outcome: str, seconds: float, reason: str = "") -> None:
        """Log the end; the cache is closed even if that fails."""
        with self._resources:
            for function in self._last_words:
                function()
            self.folder.append(Finished(outcome, round(seconds, 3), reason))


@contextlib.contextmanager
def running(settings: Settings, run_path: Path | None, grid: Grid, *, strategy: str) -> Iterator[StartedRun]:
    """Hold a run's folder inside, and log how the run starts and ends.

    Parameters
    ----------
    settings : Settings
        The run's.
    run_path : Path or None
        The run's folder; None: `run.folder`, or one named by the run id.
    grid : Grid
        Knows the run id.
    strategy : str
        The strategy's class, for the log.

    Raises
    ------
    InUseError
        Another run goes on in the folder; nothing in it is touched.
    """
    run_id = str(getattr(grid.run, "run_id", "local"))
    folder = RunFolder(run_path or run_folder(settings, run_id), run_id=run_id).make()
    with (
        private_files(),
        folder.hold(),
        folder.unchanged_on_error() as keep_log,
        copied_log(folder),
        tracked(folder, settings),
    ):
        begin = time.monotonic()
        folder.append(Started(strategy))
        started = StartedRun(folder, settings, keep_log)
        try:
            with started.naming_changes():
                yield started
        except BaseException as error:
            reason = str(error) if isinstance(error, MobiLLMError | OSError) else type(error).__name__
            with contextlib.suppress(OSError):  # a full disk takes no event; what went wrong comes out all the same
                started.finish("failed", time.monotonic() - begin, reason)
            raise
        started.finish("completed", time.monotonic() - begin)
        log_result(folder)
