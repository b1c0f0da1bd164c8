"""Showing a run as it goes: a progress bar on a terminal, plain lines in a pipe."""

from __future__ import annotations

from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from mobillm_flower.cli.output import relative
from mobillm_flower.runs import device_events, events, watching


class Watcher:
    """Shows a run's events.

    Attributes
    ----------
    run_id : str
        Flower's, once the run was accepted.
    run_path : Path or None
        The run's folder, where it is on this machine.
    """

    def __init__(self, *, quiet: bool) -> None:
        self._console = Console(stderr=True, highlight=False, markup=False, soft_wrap=True)
        self._bar = self._console.is_terminal and not quiet
        self._quiet = quiet
        self._progress = Progress(
            SpinnerColumn(),
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task("starting Flower", total=None)
        self._held = 0
        self.run_id = ""
        self.run_path: Path | None = None

    def __enter__(self) -> Watcher:
        if self._bar:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Take the progress bar away."""
        if self._bar:
            self._progress.stop()

    def follow(self, path: Path) -> None:
        """Note where the run's folder is, and show it."""
        if path != self.run_path:
            self.run_path = path
            self.say(f"run folder {relative(path)}")

    def say(self, text: str) -> None:
        """Show one line."""
        if self._bar:
            self._progress.update(self._task, description=text, total=None)
        elif not self._quiet:
            self._console.print(text)

    def event(self, event: events.Event) -> None:
        """Show what an event changes."""
        match event:
            case watching.Submitted():
                self.run_id = event.run
                self.say(f"run {self.run_id}")
            case watching.FolderSeen():
                self.follow(event.folder)
            case watching.FlowerStatus():
                self.say(f"Flower: {event.status}" if event.status != "running" else "the ServerApp is starting")
            case device_events.Waiting():
                self.say(event.reason)
            case watching.Said() if not self._quiet:
                self._console.print(event.text, style="dim")
            case events.Finished() if event.outcome == "completed":
                self.say(f"the run completed after {event.seconds:.0f} s")
            case events.Prepared():
                self._show(f"{event.devices} devices", 0, event.num_train)
                self.say(
                    f"{event.devices} devices with {event.num_train:,} samples; side network of "
                    f"{event.parameters:,} parameters, {event.num_blocks} blocks"
                )
            case events.StartedAgain():
                self.say(str(event))
            case device_events.Window():
                self._held += event.new
                self._show("devices upload", self._held, None)
            case events.Round() if event.num_held is not None:
                self.say(f"round {event.round}: {event.num_held:,} samples held")
            case events.Epoch():
                measured = {"loss": event.validation_loss, "accuracy": event.validation_accuracy}
                told = [f"validation {name} {value:.4f}" for name, value in measured.items() if value is not None]
                self.say(": ".join([f"epoch {event.epoch}", *([", ".join(told)] if told else [])]))
            case (
                device_events.Rejected()
                | device_events.Failure()
                | device_events.Dropped()
                | device_events.NodeRefused()
                | events.CacheFull()
            ) if not self._quiet:
                self._console.print(f"{event.kind}: {event.reason}", style="yellow")

    def _show(self, text: str, done: int, total: int | None) -> None:
        if self._bar:
            if total is not None:
                self._progress.update(self._task, total=total)
            self._progress.update(self._task, description=text, completed=done)
