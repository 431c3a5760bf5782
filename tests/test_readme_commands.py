"""README's command lines run as they are printed, one after another, and do what they are there to show."""

import json
import re
import shlex
from pathlib import Path

import pytest

from commands import refused, run
from inducekv import read_examples
from inducekv.embedded.files import write_drawn_tasks

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def printed() -> list[list[str]]:
    """The commands of the block under "On the command line", without the program's name."""
    found = re.search(r"^## On the command line\n+```\w*\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
    assert found is not None
    lines = [shlex.split(line, comments=True) for line in found[1].splitlines() if line.strip()]
    assert all(line[0] == "inducekv" for line in lines)
    return [line[1:] for line in lines]


def test_the_command_lines_of_the_readme_run_as_printed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    told = {}
    for words in printed():
        done = run(*words, "--json")
        assert done.exit_code == 0, (words, done.output)
        told[words[0]] = json.loads(done.stdout)
    assert {"demo", "learn", "ask", "inspect", "eval", "forget"} <= set(told)
    picture = next(Path(words[words.index("--image") + 1]) for words in printed() if words[0] == "ask")
    (asked,) = [e for e in read_examples(picture.parent, split="test") if e.images == (picture.resolve(),)]
    assert told["ask"]["answer"] == asked.answer and told["ask"]["sources"]
    assert told["inspect"]["entries"] == told["forget"]["dropped"] == len(told["learn"]["chosen"]) > 0
    (comment,) = re.findall(r"^inducekv eval .*#(.*)", README, re.MULTILINE)
    accuracy = told["eval"]["accuracy"]
    found = [accuracy[name] for name in ("inducekv", "zero_shot", "nearest_neighbour")]
    assert found == pytest.approx([float(percent) for percent in re.findall(r"(\d+) %", comment)], abs=4)
    assert found[0] > 85 > 15 > max(found[1:]), "it works well on what a newcomer tries first"


def test_every_option_that_the_readme_names_exists() -> None:
    for command in re.findall(r"`inducekv ((?:\w+ )+)[^`]*`", README.replace("\n", " ")):
        words = command.split()
        name = words[:2] if words[0] == "bench" else words[:1]
        assert run(*name, "--help").exit_code == 0, name


def test_drawn_tasks_are_written_once_the_same_for_a_seed_and_read_back(tmp_path: Path) -> None:
    first, again = (write_drawn_tasks(tmp_path / name, seed=3) for name in ("a", "b"))
    assert [f.name for f in first] == [f.name for f in again] and len(first) == 5
    for one, other in zip(first, again, strict=True):
        assert {p.name: p.read_bytes() for p in one.iterdir()} == {p.name: p.read_bytes() for p in other.iterdir()}
        train, test = read_examples(one), read_examples(one, split="test")
        assert train and test and all(e.answer and len(e.images) == 1 for e in (*train, *test))
    before = {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}
    refused(run("demo", "--write-data", tmp_path / "a"), "is there already")
    refused(run("demo", "--write-data", first[0] / "train.jsonl"), "is there already")
    assert {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()} == before
