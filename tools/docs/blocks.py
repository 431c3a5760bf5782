"""Code blocks of the documentation: found, run page by page, and compared with the output that the page shows.

    python tools/docs/blocks.py docs/cli.md ...    # write the real output into the pages, where it is another
    python tools/docs/blocks.py --exact docs/cli.md ...    # also where only its numbers differ a little

A page's blocks run in order, in one namespace and one folder. A block of `python` is executed; a block of `text` right
after it is what it prints. A block of `console` holds `$ inducekv ...` commands and their output. `notest="why"` after
the language keeps a block from being run.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from types import ModuleType

FENCE = re.compile(
    r'^```(?P<language>\w+)(?: notest="(?P<reason>[^"]*)")?\n(?P<code>.*?)^```$', re.MULTILINE | re.DOTALL
)
NUMBER = re.compile(r"(?<![\w.,])-?\d[\d,]*(?:\.\d+)?(?!\w)")
HASH = re.compile(r"\b[0-9a-f]{32,}\b")
EXACT = "--exact"
ANYTHING = "..."
"""A line of a page's output that stands for any number of lines."""
RELATIVE, ABSOLUTE = 0.1, 0.05
"""How far a number may lie from the one on the page: floating point differs between machines."""
COLUMNS = "110"
MODULE = "page"


@dataclass(frozen=True)
class Block:
    """One fenced block.

    Attributes:
        language: after the backticks.
        code: between the fences.
        line: of the opening fence, from 1.
        start, end: of `code` in the page.
        reason: why it is not run, or None.
    """

    language: str
    code: str
    line: int
    start: int
    end: int
    reason: str | None


@dataclass(frozen=True)
class Shown:
    """Output that a page shows: what is expected, what came, and where it stands in the page."""

    expected: str
    got: str
    start: int
    end: int
    line: int


def blocks(page: str) -> list[Block]:
    """All fenced blocks of a page."""
    return [
        Block(m["language"], m["code"], page.count("\n", 0, m.start()) + 1, m.start("code"), m.end("code"), m["reason"])
        for m in FENCE.finditer(page)
    ]


def run_page(page: str, name: str = "page") -> Iterator[Shown]:
    """Run a page's blocks in the current folder; yields every output that the page shows.

    Raises:
        Exception: whatever a block raises; `SyntaxError` also from a block that is not run.
    """
    found = blocks(page)
    module = sys.modules[MODULE] = ModuleType(MODULE)  # dataclasses look up the module they are defined in
    for block, after in zip_longest(found, found[1:]):
        if block.language == "python":
            code = compile("\n" * block.line + block.code, name, "exec")
            if block.reason is not None:
                continue
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(code, module.__dict__)
            if after is not None and after.language == "text" and not page[block.end + 3 : after.start - 8].strip():
                yield Shown(after.code, output.getvalue(), after.start, after.end, after.line)
        elif block.language == "console" and block.reason is None:
            got = "".join(f"$ {command}\n{run_command(command)}" for command in commands(block.code))
            yield Shown(block.code, got, block.start, block.end, block.line)


def commands(code: str) -> list[str]:
    """The commands of a console block, those over several lines with their line ends."""
    return [m[1] for m in re.finditer(r"^\$ ((?:.*\\\n)*.*)$", code, re.MULTILINE)]


def run_command(command: str) -> str:
    """What an `inducekv` command prints, run in this process."""
    from typer.testing import CliRunner

    from inducekv.cli import app

    words = shlex.split(command.replace("\\\n", " "))
    if words[0] != "inducekv":
        raise ValueError(f"only inducekv commands are run, got {command!r}; mark the block with notest")
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = COLUMNS
    try:
        result = CliRunner().invoke(app, words[1:])
    finally:
        os.environ.pop("COLUMNS") if before is None else os.environ.update(COLUMNS=before)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    said = result.stdout + (result.stderr if result.exit_code == 2 else "")  # else only progress
    return "\n".join(line.rstrip() for line in said.splitlines()) + "\n"


def difference(expected: str, got: str) -> str | None:
    """The first line on which an output differs from the page, spaces and small differences of numbers aside."""
    wanted, lines = expected.splitlines(), [line for line in got.splitlines() if line.strip()]
    anything = False
    for want in wanted:
        if not want.strip():
            continue
        if want.strip() == ANYTHING:
            anything = True
            continue
        while lines and anything and not alike(want, lines[0]):
            lines.pop(0)
        if not lines or not alike(want, lines[0]):
            return f"the page says   {want!r}\nthe run says    {lines[0] if lines else 'nothing more'!r}"
        lines.pop(0)
        anything = False
    return f"the run also says {lines[0]!r}" if lines and not anything else None


def alike(one: str, other: str) -> bool:
    one, other = (HASH.sub("HASH", " ".join(text.split())) for text in (one, other))
    numbers = [[float(x.replace(",", "")) for x in NUMBER.findall(text)] for text in (one, other)]
    if NUMBER.sub("#", one) != NUMBER.sub("#", other) or len(numbers[0]) != len(numbers[1]):
        return False
    return all(abs(a - b) <= max(ABSOLUTE, RELATIVE * abs(a)) for a, b in zip(*numbers, strict=True))


def main() -> None:
    exact, names = EXACT in sys.argv, [name for name in sys.argv[1:] if name != EXACT]
    if len(names) > 1:  # a process for each: a page may change tables of the package
        for name in names:
            subprocess.run([sys.executable, __file__, name, *([EXACT] if exact else [])], check=True)
        return
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    home = Path.cwd()
    for path in [home / name for name in names]:
        page = path.read_text(encoding="utf-8")
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            shown = list(run_page(page, str(path)))
            os.chdir(home)
        for output in reversed(shown):
            stale = exact and ANYTHING not in output.expected and output.expected != output.got
            if stale or difference(output.expected, output.got) is not None:
                print(f"{path}:{output.line}: new output")
                page = page[: output.start] + output.got + page[output.end :]
        path.write_text(page, encoding="utf-8")


if __name__ == "__main__":
    main()
