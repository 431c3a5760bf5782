"""What a command waits for, said on standard error before it waits."""

from __future__ import annotations

import os
import sys

from rich.console import Console
from rich.text import Text

from inducekv.cli.common import printable


def waiting_for(what: str, quiet: bool) -> None:
    """One line on standard error, such as "loading embedded ..."; nothing when `quiet`, or in the second of several
    processes that were started together."""
    if quiet or os.environ.get("RANK", "0") != "0":
        return
    console = Console(file=sys.stderr, soft_wrap=True)
    console.print(Text(f"{printable(what)} ...", style="dim"), highlight=False)


def loading_libraries(quiet: bool, *libraries: str) -> None:
    """Says that libraries are loaded, which takes seconds; to be called before the first import of them."""
    missing = [name for name in libraries or ("torch", "transformers") if name not in sys.modules]
    if missing:
        waiting_for(f"loading {' and '.join(missing)}", quiet)
