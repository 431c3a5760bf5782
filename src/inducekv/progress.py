"""What a long-running function says while it works, and the two ways to show it."""

from __future__ import annotations

import sys
import time
from typing import Protocol, runtime_checkable

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


@runtime_checkable
class Progress(Protocol):
    """Hook that library functions report to: `start` a stage of `total` steps, `advance`, `stop`."""

    def start(self, what: str, total: int) -> None: ...

    def advance(self, n: int = 1) -> None: ...

    def stop(self) -> None: ...


class Silent:
    """Shows nothing: the default everywhere in the library."""

    def start(self, what: str, total: int) -> None:
        pass

    def advance(self, n: int = 1) -> None:
        pass

    def stop(self) -> None:
        pass


SILENT: Progress = Silent()


class BarProgress:
    """A bar on a terminal's standard error, one stage at a time; starting a new stage ends the one before."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._bar: RichProgress | None = None

    def start(self, what: str, total: int) -> None:
        self.stop()
        self._bar = RichProgress(
            TextColumn("{task.description}", markup=False),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            console=self._console,
            transient=True,
            redirect_stdout=sys.stdout.isatty(),  # else lines meant for a file would be shown above the bar instead
        )
        self._bar.start()
        self._task = self._bar.add_task(what, total=total)

    def advance(self, n: int = 1) -> None:
        if self._bar is not None:
            self._bar.advance(self._task, n)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class LineProgress:
    """Plain lines for logs: a stage is mentioned once it has lasted two seconds, and then every `interval` seconds."""

    def __init__(self, console: Console, patience: float = 2.0, interval: float = 10.0) -> None:
        self._console = console
        self._patience, self._interval = patience, interval
        self._what, self._done, self._total = "", 0, 0
        self._next = 0.0

    def start(self, what: str, total: int) -> None:
        self._what, self._done, self._total = what, 0, total
        self._next = time.monotonic() + self._patience

    def advance(self, n: int = 1) -> None:
        self._done += n
        if time.monotonic() >= self._next:
            self._next = time.monotonic() + self._interval
            self._console.print(f"{self._what}: {self._done}/{self._total}", highlight=False, markup=False)

    def stop(self) -> None:
        self._what = ""


def console_progress(quiet: bool = False, console: Console | None = None) -> Progress:
    """A bar when standard error is a terminal, plain lines when it is not, nothing when `quiet`."""
    if quiet:
        return SILENT
    console = console or Console(file=sys.stderr)
    return BarProgress(console) if console.is_terminal else LineProgress(console)


class Labelled:
    """Passes everything on to another hook, each stage under a label: "InduceKV, task 2 of 6: encoding"."""

    def __init__(self, progress: Progress, label: str) -> None:
        self._progress, self._label = progress, label

    def start(self, what: str, total: int) -> None:
        self._progress.start(f"{self._label}: {what}", total)

    def advance(self, n: int = 1) -> None:
        self._progress.advance(n)

    def stop(self) -> None:
        self._progress.stop()
