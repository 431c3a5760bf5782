"""What the tests of the command line share."""

import json
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

from typer.testing import CliRunner, Result

import tiny
from inducekv.cli import app

WORDS = ("zorb", "blick")


def run(*arguments: object) -> Result:
    """The command in this process."""
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def run_json(*arguments: object) -> Any:
    result = run(*arguments, "--json")
    if result.exit_code:
        raise AssertionError(result.output) from result.exception
    return json.loads(result.stdout)


def start(*arguments: object) -> subprocess.Popen[str]:
    """The command in a process of its own, which Ctrl-C reaches even where the tests run in the background."""
    command = [sys.executable, "-m", "inducekv.cli", *map(str, arguments)]
    before = signal.signal(signal.SIGINT, signal.SIG_DFL)  # what is ignored here would be ignored there too
    try:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    finally:
        signal.signal(signal.SIGINT, before)


def refused(result: Result, *said: str) -> None:
    """A clear message on standard error, exit code 2, no traceback."""
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert "Traceback" not in result.stderr
    for words in said:
        assert words in result.stderr, result.stderr


def write_task(folder: Path, name: str, count: int = 12) -> Path:
    """A JSONL file of `count` questions about noise pictures, under made-up names."""
    (folder / "images").mkdir(parents=True, exist_ok=True)
    rows = []
    for i in range(count):
        tiny.picture(i).save(folder / "images" / f"{name}-{i}.png")
        rows.append(
            {"image": f"images/{name}-{i}.png", "question": "what?", "answer": WORDS[i % 2], "id": f"{name}-{i}"}
        )
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path
