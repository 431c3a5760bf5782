"""Error messages are short and steer no terminal, whatever was given, on the command line and in Python."""

from collections.abc import Callable

import pytest

from commands import refused, run
from inducekv.bytes import parse_bytes
from inducekv.config import InduceKVConfig
from inducekv.entry import check_name
from inducekv.error_text import LONGEST_MESSAGE
from inducekv.memory import KVMemory
from test_memory import filled


@pytest.mark.parametrize(
    "arguments",
    [
        ("inspect", "a\x1b[31m", "b\x9b2J"),
        ("inspect", "y" * 5000, "z" * 5000),
        ("inspect", "--x\x1b[2J"),
        ("le\x1b[2Jarn",),
        ("bench", "le\x1b[2Jarn"),
        ("ask", "what?", "--memory", "m", "--seed", "9\x1b[2J" * 900),
        ("ask", "what?", "--memory", "\x1b[2J" * 900),
        ("forget", "m" * 3000, "--task", "t"),
        ("learn", "d" * 3000, "--memory", "m"),
    ],
    ids=range(9),
)
def test_mistakes_on_the_command_line_are_told_in_one_short_message(arguments: tuple[str, ...]) -> None:
    result = run(*arguments)
    refused(result, "inducekv: error: ")
    said = result.stderr.rstrip("\n")
    assert len(said) <= LONGEST_MESSAGE and said.replace("\n", "").isprintable(), said


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: filled().forget("t" * 3000),
        lambda: filled().drop(["i" * 3000]),
        lambda: filled().merge(KVMemory("1MiB", filled().layout, "int8", {"x": "y" * 3000})),
        lambda: InduceKVConfig.from_dict({"z" * 3000: 1}),
        lambda: InduceKVConfig.from_dict({"selector": "z" * 3000}),
        lambda: InduceKVConfig.from_dict({"payload": "z" * 3000}),
        lambda: InduceKVConfig.from_dict({"seed": "z" * 3000}),
        lambda: InduceKVConfig.from_dict({"payload_layers": "z" * 3000}),
        lambda: InduceKVConfig.from_dict({"budget": "z" * 3000}),
        lambda: parse_bytes("z" * 3000),
        lambda: KVMemory("1MiB", filled().layout, "z" * 3000, {}),
        lambda: check_name("task", "\U000e0001" * 3000),
    ],
    ids=range(12),
)
def test_mistakes_in_python_are_told_in_short_messages(wrong: Callable[[], object]) -> None:
    with pytest.raises((ValueError, TypeError)) as error:
        wrong()
    assert len(str(error.value)) <= LONGEST_MESSAGE
