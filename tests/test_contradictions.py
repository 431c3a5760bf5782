"""The same pictures and question with another answer: the older entry goes, and the report says so."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inducekv.config import InduceKVConfig
from inducekv.contradictions import without_contradicted
from inducekv.examples import Example
from inducekv.learner import learn
from inducekv.model import empty_memory
from inducekv.training_state import TrainingState

QUICK = {"selector": "facility_location", "calibration_steps": 0, "anchors": 6, "batch_size": 4, "budget": "4MiB"}


def picture(seed):
    pixels = np.random.default_rng(seed).integers(0, 256, (28, 28, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def ask(seed, answer, name=None, question="which?"):
    return Example(question, answer, (picture(seed),), name)


def taught(backbone, *lessons, **changes):
    """A memory, its training state and the reports of lessons: (task, examples)."""
    config = InduceKVConfig(**QUICK, **changes)
    memory, state = empty_memory(backbone, config), TrainingState()
    reports = [
        learn(backbone, memory, examples, task=task, config=config, training_state=state) for task, examples in lessons
    ]
    return memory, state, reports


def held(memory):
    return sorted((entry.task, entry.answer) for entry in memory.entries)


@pytest.mark.parametrize("named", ["by content", "alike", "differently"])
@pytest.mark.parametrize("task", ["one", "two"])
def test_another_answer_replaces_the_older_entry_and_is_told(llava, named, task):
    first = [ask(i, f"wrong {i}", None if named == "by content" else f"first-{i}") for i in range(3)]
    ids = {"by content": None, "alike": "first-1", "differently": "other"}
    memory, state, (_, report) = taught(llava, ("one", first), (task, [ask(1, "right", ids[named])]))
    kept = {("one", "wrong 0"), ("one", "wrong 2"), (task, "right")}
    assert set(held(memory)) == kept and len(memory) == 3
    assert {(anchor.task, anchor.answer) for anchor in state.anchors} == kept, "what is asked of earlier tasks, too"
    (told,) = report.warnings
    assert told.startswith("an entry was replaced") and "'wrong 1' before, 'right' now" in told and len(told) <= 500


def test_other_pictures_questions_and_the_same_answers_replace_nothing(llava):
    first = [ask(i, "red") for i in range(3)]
    second = [ask(5, "blue"), ask(1, "blue", question="which one?"), ask(2, "red", "another id")]
    memory, state, (_, report) = taught(llava, ("one", first), ("one", second))
    assert len(memory) == 6 and report.warnings == [] and len(state.anchors) == 6


def test_several_answers_of_one_lesson_are_no_contradiction(llava):
    captions = [ask(0, f"caption {i}", f"c{i}") for i in range(3)]
    more = [dataclasses.replace(example, id=f"again-{i}") for i, example in enumerate([*captions, ask(0, "caption 9")])]
    memory, _, (first, second) = taught(llava, ("one", captions), ("one", more))
    assert first.warnings == second.warnings == [] and len(memory) == 7
    _, _, (_, report) = taught(llava, ("one", captions), ("one", [ask(0, "caption 9", "c9")]))
    assert report.warnings[0].startswith("3 entries were replaced")


def test_long_texts_are_compared_as_far_as_they_are_kept(llava):
    question = "word " * 120 + "?"
    memory, _, (_, report) = taught(
        llava,
        ("one", [ask(0, "short", "a", question), ask(1, "short", "b", question)]),
        ("one", [ask(0, "a much longer answer " * 3, "c", question)]),
    )
    assert len(memory) == 2 and len(report.warnings) == 1 and len(report.warnings[0]) <= 500


def test_an_entry_is_found_by_its_content_where_its_key_was_rounded_otherwise(llava):
    config = InduceKVConfig(**QUICK)
    memory, _, _ = taught(llava, ("one", [ask(i, "red") for i in range(3)]))
    other, _, _ = taught(llava, ("one", [ask(1, "blue")]))
    (fresh,) = other.entries
    key = fresh.key.clone()
    key[0] ^= 1
    warnings = []
    arguments = ([dataclasses.replace(fresh, key=key)], [ask(1, "blue")], TrainingState(), config, warnings)
    old, _ = without_contradicted(memory, *arguments)
    assert len(old) == 2 and len(warnings) == 1
    memory.replace_all([dataclasses.replace(entry, id=f"row-{i}") for i, entry in enumerate(memory.entries)])
    old, _ = without_contradicted(memory, *arguments)
    assert len(old) == 3 and len(warnings) == 1, "without the content's hash only an equal key is proof enough"


def test_keys_that_say_nothing_of_pictures_prove_nothing(llava):
    first = [ask(i, f"answer {i}", f"a{i}") for i in range(3)]
    second = [ask(i + 5, f"other {i}", f"b{i}") for i in range(3)]
    memory, _, (_, report) = taught(llava, ("one", first), ("one", second), key_layer=0, key_pool="last")
    assert len(memory) == 6 and report.warnings == []
    assert len({entry.key.numpy().tobytes() for entry in memory.entries}) == 1
    config, warnings = InduceKVConfig(**QUICK), []
    fresh = [entry for entry in memory.entries if entry.id.startswith("b")]
    memory.replace_all([entry for entry in memory.entries if entry.id.startswith("a")])
    assert len(without_contradicted(memory, fresh, second, TrainingState(), config, warnings)[0]) == 3
    assert not warnings, "whatever made them so"


@settings(deadline=None, max_examples=12)
@given(
    st.lists(st.dictionaries(st.integers(0, 3), st.sampled_from(["red", "blue"]), min_size=1), min_size=2, max_size=3)
)
def test_the_last_answer_to_every_prompt_is_the_only_one(llava, lessons):
    """Whatever is taught in whatever order; each lesson asks about a picture at most once."""
    tasks, changed, last = [], [], {}
    for number, lesson in enumerate(lessons):
        tasks.append((f"task {number}", [ask(seed, answer, f"{number}-{seed}") for seed, answer in lesson.items()]))
        changed.append(any(last.get(seed, answer) != answer for seed, answer in lesson.items()))
        last |= lesson
    memory, _, reports = taught(llava, *tasks)
    assert [bool(report.warnings) for report in reports] == changed
    answers = {}
    for entry in memory.entries:
        answers.setdefault(int(entry.id.split("-")[1]), set()).add(entry.answer)
    assert answers == {seed: {answer} for seed, answer in last.items()}
