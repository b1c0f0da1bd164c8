"""A run's folder: the names of its files, the lock that its process holds, and the log of events."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO, TextIO

from mobillm_flower.errors import InUseError
from mobillm_flower.runs.events import Event, OnEvent
from mobillm_flower.runs.files import make_private
from mobillm_flower.runs.log import encode

_LOCK = "lock"
_LOCK_WAIT_S = 1.0  # longer than a look at the lock takes


class RunFolder:
    """Names the files of a run and appends to its log; naming makes nothing.

    Parameters
    ----------
    path : path
        The folder; it need not be there, see `make`.
    run_id : str
        Flower's id of the run that logs here, which each of its events carries; empty outside of runs. A folder has
        events of several runs where one goes on with another.

    Attributes
    ----------
    on_event : callable or None
        Called with each event that was appended.
    settings, events, log : Path
        The run's settings, its log of events, and what the strategy printed and logged.
    cache, checkpoint : Path
        What devices uploaded, and where training stands.
    side_network, side_config : Path
        Folder of the saved network, and its config.json, which is written last.
    sums, earlier_sums : Path
        Sums over the samples of all tasks so far, where a run keeps them for the next task; those that it began with.
    results, report : Path
        The table that `mobillm run` printed with the references, and the page.
    audit : Path
        What `mobillm audit` found.
    devices : Path
        In simulation, where the devices' own folders are.
    flower, flower_log : Path
        What Flower keeps of a simulation, and its log.
    """

    def __init__(self, path: str | Path, *, run_id: str = "") -> None:
        self.run_id = run_id
        self.path = path = Path(path).expanduser()
        self.on_event: OnEvent | None = None
        self.settings = path / "settings.yaml"
        self.events = path / "events.jsonl"
        self.log = path / "run.log"
        self.cache = path / "cache.sqlite"
        self.checkpoint = path / "checkpoint" / "trainer.pt"
        self.side_network = path / "side_network"
        self.side_config = self.side_network / "config.json"
        self.sums = path / "sums.safetensors"
        self.earlier_sums = path / "earlier-sums.safetensors"
        self.results = path / "results.json"
        self.report = path / "report.html"
        self.audit = path / "audit.json"
        self.devices = path / "devices"
        self.flower = path / "flower"
        self.flower_log = self.flower / "superlink.log"

    def make(self) -> RunFolder:
        """Make the folder as `make_private` does, and return this."""
        make_private(self.path, "run.folder")
        return self

    def device(self, number: object) -> Path:
        """Return the own folder of a simulated device, by its partition (or its node where it has none)."""
        return self.devices / f"partition-{number}"

    def device_folders(self) -> list[Path]:
        """Return the devices' folders by their partitions; none of a deployment, or where some are missing."""
        folders = [self.device(number) for number in range(sum(1 for _ in self.devices.glob("partition-*")))]
        return folders if all(folder.is_dir() for folder in folders) else []

    def round_weights(self, number: int) -> Path:
        """Return where a baseline's weights after a round are kept: rounds/NUMBER.pt."""
        return self.path / "rounds" / f"{number}.pt"

    def delete_bulk(self) -> None:
        """Delete what is large and no report reads: cache, checkpoint, kept rounds, folders of devices and Flower."""
        self.cache.unlink(missing_ok=True)
        for folder in (self.checkpoint.parent, self.round_weights(0).parent, self.devices, self.flower):
            shutil.rmtree(folder, ignore_errors=True)

    def hold(self) -> TextIO:
        """Take the folder for this process, until what is returned is closed, or the process ends, however it does.

        A strategy holds it while it runs; what changes the cache from outside must hold it too.

        Raises
        ------
        InUseError
            Another process has it.
        """
        # Not inherited by programs that are started from here, so that none of them can outlive the run with it.
        stream = (self.path / _LOCK).open("a+", encoding="utf-8")
        deadline = time.monotonic() + _LOCK_WAIT_S
        while not _lock(stream, fcntl.LOCK_EX):
            if time.monotonic() > deadline:
                stream.close()
                raise InUseError(
                    f"{self.path} is in use by process {self.holder() or 'unknown'}; wait until it has ended"
                )
            time.sleep(0.05)
        stream.truncate(0)
        stream.write(f"{os.getpid()}\n")
        stream.flush()
        return stream

    def holder(self) -> int | None:
        """Return the id of the process that holds the folder, None where there is none (0: not known)."""
        try:
            with (self.path / _LOCK).open(encoding="utf-8") as stream:
                if _lock(stream, fcntl.LOCK_SH):
                    return None
                text = stream.read().strip()
        except FileNotFoundError:
            return None
        return int(text) if text.isdigit() else 0

    @contextlib.contextmanager
    def unchanged_on_error(self) -> Iterator[Callable[[], None]]:
        """Take back what is logged inside when it ends by an error, if the folder has a log of before.

        Yields a function that says from when on the log stays. The caller holds the folder.
        """
        kept = False

        def keep() -> None:
            nonlocal kept
            kept = True

        files = (self.events, self.log)
        before = {file: file.stat().st_size for file in files if file.exists()}
        try:
            yield keep
        except BaseException:
            for file in files if before.get(self.events) and not kept else ():
                os.truncate(file, before[file]) if file in before else file.unlink(missing_ok=True)
            raise

    def append(self, event: Event) -> None:
        """Write an event to the end of the log, with the time and the run's id."""
        with self.events.open("ab+") as stream:
            _cut_torn_line(stream)
            stream.write(encode(event, time=round(time.time(), 3), run=self.run_id))
        if self.on_event is not None:
            self.on_event(event)


def _lock(stream: TextIO, kind: int) -> bool:
    try:
        fcntl.flock(stream, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks: nobody can be kept out
        return True
    return True


def _cut_torn_line(stream: BinaryIO) -> None:
    """Cut what a writer that was killed, or that found the disk full, left of a line."""
    end = stream.seek(0, os.SEEK_END)
    if not end:
        return
    stream.seek(end - 1)
    if stream.read(1) == b"\n":
        return
    stream.seek(0)
    stream.truncate(stream.read().rfind(b"\n") + 1)
