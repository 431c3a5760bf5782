"""Progress for terminals, for logs, and for nobody."""

import io

from rich.console import Console

from inducekv.progress import SILENT, BarProgress, LineProgress, console_progress


def lines_of(patience: float, interval: float) -> list[str]:
    file = io.StringIO()
    progress = LineProgress(Console(file=file, width=80), patience, interval)
    progress.start("encoding [examples]", 4)
    progress.advance()
    progress.advance(3)
    progress.stop()
    return file.getvalue().splitlines()


def test_a_log_gets_plain_lines_of_long_stages_only():
    assert lines_of(0.0, 0.0) == ["encoding [examples]: 1/4", "encoding [examples]: 4/4"]
    assert lines_of(0.0, 3600.0) == ["encoding [examples]: 1/4"]
    assert lines_of(3600.0, 0.0) == []


def test_a_terminal_gets_a_bar_that_goes_away():
    file = io.StringIO()
    progress = console_progress(console=Console(file=file, force_terminal=True, width=80))
    assert isinstance(progress, BarProgress)
    progress.start("one", 2)
    progress.start("two", 2)
    progress.advance(2)
    progress.stop()
    progress.stop()
    shown = file.getvalue()
    assert "one" in shown
    assert "2/2" in shown
    assert shown.endswith("\x1b[2K"), "the line is cleared"


def test_quiet_is_silent():
    assert console_progress(quiet=True) is SILENT
    assert isinstance(console_progress(console=Console(file=io.StringIO())), LineProgress)
