"""Streams of text: what is read of their folders, how questions are asked, and how examples are sampled."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from inducekv.continual.graders import EXACT, GRADERS
from inducekv.continual.methods.training import Recipe
from inducekv.continual.passes import Settings
from inducekv.continual.stream import Experience, Stream
from inducekv.continual.streams import STREAMS, check_stream, stream_named
from inducekv.continual.streams.kinds import balanced
from inducekv.continual.streams.text import TEXT_STREAMS, TextStream
from inducekv.examples import Example

GRADED = [kind for kind in TEXT_STREAMS if kind.grader in GRADERS]
CHOICES = "What is it? Choose one from: yes, no.\n"


def make(kind: TextStream, root: Path, rows: int = 6) -> None:
    for task in kind.tasks:
        folder = root / kind.folder / f"{kind.prefix}{task}"
        folder.mkdir(parents=True)
        for split in ("train", "test"):
            asked = [
                {"question": f"{CHOICES}User: {task} {split} {i}\nIntent:", "answer": ("yes", "no")[i % 3 == 0]}
                for i in range(rows)
            ]
            (folder / f"{split}.jsonl").write_text("\n".join(map(json.dumps, asked)), encoding="utf-8")


@pytest.mark.parametrize("kind", GRADED, ids=lambda kind: kind.name)
def test_a_stream_of_text_is_read_in_its_order_and_graded(kind: TextStream, tmp_path: Path) -> None:
    make(kind, tmp_path)
    assert check_stream(kind.name, tmp_path) == []
    stream = stream_named(kind.name, root=tmp_path)
    assert (stream.name, tuple(stream.tasks)) == (kind.name, kind.tasks)
    for experience in stream.experiences:
        assert experience.grader is GRADERS[kind.grader]
        assert experience.also == (() if experience.grader is EXACT else (EXACT,))
        assert (len(experience.train), len(experience.test)) == (6, 6)
        for example in experience.test:
            assert example.question.startswith("User: " if kind.has_choices else CHOICES)
            assert experience.task in example.question


@pytest.mark.parametrize("kind", GRADED, ids=lambda kind: kind.name)
def test_choices_are_kept_where_there_are_any(kind: TextStream, tmp_path: Path) -> None:
    make(kind, tmp_path)
    if not kind.has_choices:
        with pytest.raises(ValueError, match=f"text/clinc150 and text/banking77, not of {kind.name}"):
            stream_named(kind.name, root=tmp_path, choices=True)
        return
    (first, *_) = stream_named(kind.name, root=tmp_path, choices=True).experiences
    assert all(example.question.startswith(CHOICES) for example in (*first.train, *first.test))


@pytest.mark.parametrize("kind", TEXT_STREAMS, ids=lambda kind: kind.name)
def test_what_is_missing_is_named(kind: TextStream, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=f"no folder '{kind.folder}' in .*{kind.prefix}{kind.tasks[0]}/train.jsonl"):
        stream_named(kind.name, root=tmp_path)
    with pytest.raises(ValueError, match="as root, got"):
        stream_named(kind.name, root=tmp_path / "nowhere")
    (tmp_path / kind.folder).mkdir()
    problems = check_stream(kind.name, tmp_path)
    assert len(problems) == len(kind.tasks) and all("no such file or folder" in problem for problem in problems)


def test_only_some_tasks_and_samples_of_any_stream() -> None:
    whole = stream_named("embedded/task", seed=3)
    some = stream_named("embedded/task", seed=3, tasks=2, train_samples=5, test_samples=4)
    assert some.tasks == whole.tasks[:2] and [e.position for e in some.experiences] == [0, 1]
    for part, experience in zip(some.experiences, whole.experiences, strict=False):
        for split, count in (("train", 5), ("test", 4)):
            kept, given_ = getattr(part, split), [e.identifier for e in getattr(experience, split)]
            assert len(kept) == count and sorted(map(given_.index, (e.identifier for e in kept))) == [
                given_.index(e.identifier) for e in kept
            ]
    for mistake in ({"tasks": 0}, {"train_samples": 0}, {"test_samples": -1}):
        with pytest.raises(ValueError, match="at least 1"):
            stream_named("embedded/task", **mistake)


@settings(deadline=None)
@given(
    answers=st.lists(st.sampled_from("abcd"), min_size=1, max_size=40),
    samples=st.integers(1, 50),
    seed=st.integers(0, 5),
)
def test_samples_are_balanced_over_answers(answers: list[str], samples: int, seed: int) -> None:
    examples = [Example(f"q{i}", answer) for i, answer in enumerate(answers)]
    chosen = balanced(examples, samples, seed, "t")
    assert len(chosen) == min(samples, len(examples)) and len({e.question for e in chosen}) == len(chosen)
    counts, there = Counter(e.answer for e in chosen), Counter(answers)
    most = max(counts.values())
    for answer in there:  # an answer that comes up less often is used up
        assert counts[answer] >= most - 1 or counts[answer] == there[answer]


def test_what_suits_a_stream_is_what_a_command_leaves_open() -> None:
    suits = STREAMS["text/banking77"].suits
    settled = Settings("m").on(suits)
    assert (settled.evaluate, settled.max_new_tokens, settled.epochs, settled.ahead) == ("diagonal+last", 16, 3, False)
    asked = Settings("m", None, 5, evaluate="all", epochs=7).on(suits)
    assert (asked.evaluate, asked.max_new_tokens, asked.epochs, asked.ahead) == ("all", 5, 7, True)
    assert settled.on(suits) == settled
    usual = Settings().on(STREAMS["embedded/task"].suits)
    assert (usual.evaluate, usual.max_new_tokens, usual.epochs, usual.ahead) == ("all", 32, None, True)


def test_a_file_from_before_a_setting_has_its_default() -> None:
    before = {"model": "embedded", "limit": None, "max_new_tokens": 32, "ahead": True}
    assert Settings().on({}).differing(before) == []
    assert Settings(limit=4).on({}).differing(before) == ["with limit None, not 4"]
    assert Settings(test_samples=9).on({}).differing(before) == ["with test_samples None, not 9"]


def test_recipes_change_in_proportion_to_that_of_lora() -> None:
    usual, soft = Recipe(), Recipe(epochs=60, learning_rate=3e-2, batch_size=4)
    assert usual.scaled(3, 1e-3) == replace(usual, epochs=3, learning_rate=1e-3)
    assert soft.scaled(3, 1e-3) == replace(soft, epochs=9, learning_rate=1.5e-2)
    assert soft.scaled(None, None) == soft and soft.scaled(1, None).learning_rate == soft.learning_rate


def test_answers_are_graded_under_further_graders_too() -> None:
    said, rouge = (Example("q", "red ball"), Example("r", "ball")), GRADERS["rouge_l"]
    stream = Stream(
        (Experience("a", said, said, grader=rouge, also=(EXACT,)), Experience("b", said, said, grader=EXACT))
    )
    assert stream.also_graded([["red", "Ball."], ["red ball", "x"]]) == {"exact": [50.0, None]}
    assert Stream.from_tasks([("a", said, said)]).also_graded([["x", "y"]]) == {}
