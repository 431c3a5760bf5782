"""What a command waits for, said on standard error before it waits."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from contextvars import ContextVar
from typing import ParamSpec, TypeVar

from rich.console import Console
from rich.text import Text

P = ParamSpec("P")
R = TypeVar("R")

_SILENT = ContextVar("silent", default=True)


def waits(*libraries: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Makes a command say what it waits for, unless it is called with `quiet`: at once the libraries, if given."""

    def decorate(command: Callable[P, R]) -> Callable[P, R]:
        @functools.wraps(command)
        def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
            later = os.environ.get("RANK", "0") != "0"  # of several processes started together the first speaks
            before = _SILENT.set(bool(kwargs.get("quiet")) or later)
            try:
                loading(*libraries)
                return command(*args, **kwargs)
            finally:
                _SILENT.reset(before)

        return wrapper

    return decorate


def loading(*libraries: str) -> None:
    """Says which of the libraries are still to be imported, which takes seconds; to be called before that."""
    missing = [name for name in libraries if name not in sys.modules]
    if missing:
        waiting_for(f"loading {' and '.join(missing)}")


def waiting_for(what: str) -> None:
    """One line on standard error, such as "loading embedded ..."; nothing outside of a command that `waits`."""
    if not _SILENT.get():
        shown = "".join(character if character.isprintable() else "�" for character in what)
        Console(file=sys.stderr, soft_wrap=True).print(Text(f"{shown} ...", style="dim"), highlight=False)
