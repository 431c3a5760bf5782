"""What every command offers and says: `--json`, `--quiet`, and a line before it keeps anyone waiting."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
import typer

from commands import refused, run
from inducekv.cli import app
from inducekv.cli.waiting import loading, waiting_for, waits

GOLDEN = Path(__file__).parent / "golden" / "memory"


def commands(group: click.Command, *names: str) -> Iterator[tuple[tuple[str, ...], click.Command]]:
    """Every command that can be run, under its names."""
    inner = getattr(group, "commands", None)
    if inner is None:
        yield names, group
        return
    for name, command in inner.items():
        yield from commands(command, *names, name)


COMMANDS = dict(commands(typer.main.get_command(app)))


def test_the_commands_are_found() -> None:
    assert {("learn",), ("doctor",), ("bench", "list"), ("bench", "run")} <= set(COMMANDS)


@pytest.mark.parametrize("names", COMMANDS, ids=" ".join)
def test_every_command_has_json_and_quiet(names: tuple[str, ...]) -> None:
    options = {option for parameter in COMMANDS[names].params for option in parameter.opts}
    assert {"--json", "--quiet", "-q"} <= options


def fresh(*arguments: object) -> subprocess.CompletedProcess[str]:
    """The command in a process that has not imported anything yet."""
    words = [sys.executable, "-m", "inducekv", *map(str, arguments)]
    return subprocess.run(words, capture_output=True, text=True, check=False, env={**os.environ, "NO_COLOR": "1"})


def test_a_command_says_what_it_waits_for_and_quiet_says_nothing() -> None:
    loud, quiet = fresh("inspect", GOLDEN, "--json"), fresh("inspect", GOLDEN, "--json", "--quiet")
    assert loud.stderr == "loading torch ...\n" and quiet.stderr == ""
    assert json.loads(loud.stdout) == json.loads(quiet.stdout)


def test_what_is_loaded_is_not_waited_for(capsys: pytest.CaptureFixture[str]) -> None:
    import torch  # noqa: F401

    waits("torch")(lambda quiet: None)(quiet=False)
    assert capsys.readouterr().err == ""
    waits("torch", "no_such_library")(lambda quiet: None)(quiet=False)
    assert capsys.readouterr().err == "loading no_such_library ...\n"


def test_who_is_quiet_and_which_process_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    @waits()
    def command(quiet: bool) -> None:
        waiting_for("loading [b]a\x1b[2J")

    command(quiet=False)
    assert capsys.readouterr().err == "loading [b]a�[2J ...\n"
    command(quiet=True)
    loading("no_such_library")  # the library itself says nothing outside of a command
    monkeypatch.setenv("RANK", "1")
    command(quiet=False)
    assert capsys.readouterr().err == ""


def test_a_failed_command_leaves_nothing_behind(capsys: pytest.CaptureFixture[str]) -> None:
    @waits()
    def command(quiet: bool) -> None:
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        command(quiet=False)
    waiting_for("loading a")
    assert capsys.readouterr().err == ""


def test_bench_list_quiet_is_names_alone() -> None:
    listed = json.loads(run("bench", "list", "--json").stdout)
    assert run("bench", "list", "--quiet").stdout.split() == [*listed["streams"], *listed["methods"]]


@pytest.mark.parametrize("name", ["inspect", "forget"])
def test_an_option_that_does_nothing_is_not_offered(name: str) -> None:
    refused(run(name, GOLDEN, "--seed", 1), "No such option", "--seed")
