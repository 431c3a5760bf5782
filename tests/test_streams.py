"""Streams by name: their form, masked labels, and what the generated ones promise."""

import copy
from functools import cache, partial
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from inducekv.continual.graders import EXACT
from inducekv.continual.stream import Experience, Stream, TaskLabelHidden
from inducekv.continual.streams import STREAMS, check_stream, stream_named
from inducekv.continual.streams.kinds import limited
from inducekv.embedded.styles import STYLES, styled
from inducekv.embedded.worlds import World
from inducekv.examples import Example, image_key

ONE = (Example("q", "a"),)
drawn = cache(partial(stream_named, seed=900))
EMBEDDED = {"embedded/task": 8, "embedded/vqa": 10, "embedded/domain": 10, "embedded/lifelong": 24}


def test_a_masked_experience_has_no_label_to_leak() -> None:
    known = Experience("secret", ONE, ONE, validation=ONE, position=3)
    masked = known.masked()
    for read in (lambda: masked.task, lambda: masked.task, lambda: hasattr(masked, "task")):
        with pytest.raises(TaskLabelHidden, match="experience 3 is hidden"):
            read()
    assert "secret" not in repr(masked) and "secret" not in str(vars(masked))
    assert (masked.train, masked.test, masked.validation) == (ONE, ONE, ONE)
    assert (masked.position, masked.grader) == (3, EXACT)
    assert isinstance(masked, Experience) and masked == known.masked() != known and hash(masked) == hash(known.masked())
    assert masked.masked() is masked
    assert copy.copy(masked) == masked
    with pytest.raises(AttributeError, match="colour"):
        _ = masked.colour  # type: ignore[attr-defined]


def test_a_stream_numbers_its_experiences_and_masks_them_where_asked() -> None:
    tasks = [("first", ONE, ONE), ("second", ONE, ONE)]
    shown, hidden = Stream.from_tasks(tasks), Stream.from_tasks(tasks, task_labels="hidden")
    assert [e.position for e in shown.experiences] == [0, 1] == [e.position for e in hidden.for_learning()]
    assert [e.task for e in shown.for_learning()] == ["first", "second"] == hidden.tasks
    for experience in hidden.for_learning():
        with pytest.raises(TaskLabelHidden):
            _ = experience.task
    with pytest.raises((ValueError, TypeError), match="sometimes"):
        Stream.from_tasks(tasks, task_labels="sometimes")
    with pytest.raises(ValueError, match="validation example without an answer"):
        Experience("t", ONE, ONE, validation=(Example("q"),))


@pytest.mark.parametrize("name", EMBEDDED)
def test_generated_streams_follow_their_seed(name: str) -> None:
    first, again, other = drawn(name), stream_named(name, seed=900), stream_named(name, seed=901)
    assert tuple(first.tasks) == STREAMS[name].tasks == tuple(other.tasks) and len(first) == EMBEDDED[name]
    assert first.name == name

    def content(stream: Stream) -> list[str]:
        return [example.identifier for e in stream.experiences for example in (*e.train, *e.test)]

    def names(stream: Stream) -> set[str]:
        return {(x.answer or "").split()[-1] for e in stream.experiences for x in e.train}

    assert content(first) == content(again) != content(other)
    assert not names(first) & names(other), "names are new for each seed"
    assert check_stream(name, Path("anywhere")) == []
    for experience in first.experiences:
        pictures = {image_key(example) for example in (*experience.train, *experience.test)}
        assert len(pictures) == len(experience.train) + len(experience.test), "no picture is both learned and asked"


@pytest.mark.parametrize("name", EMBEDDED)
def test_every_generated_stream_asks_what_copying_cannot_answer(name: str) -> None:
    stream = drawn(name)
    learned = {(x.question, x.answer) for e in stream.experiences for x in e.train}
    asked = [(x.question, x.answer) for e in stream.experiences for x in e.test]
    composed = [pair for pair in asked if " " in (pair[1] or "")]
    assert len(composed) >= 0.25 * len(asked)
    assert not learned & set(composed), "no training example of the whole stream has the answer to copy"
    words = {word for _, answer in learned for word in (answer or "").split()}
    assert {word for _, answer in asked for word in (answer or "").split()} <= words, "every asked name is shown"


def test_one_thing_has_one_name_in_a_world() -> None:
    world = World(900, "w")
    colours, shapes = world.some("colour", 3, "a"), world.some("shape", 3, "a")
    pairs = world.colour_and_shape(colours, shapes, train=20, test=4)[0]
    counted = world.counted(shapes, train=20, test=4)[0]
    names = {world.names["shape"][shape] for shape in shapes}
    assert {x.answer.split()[1] for x in pairs} == names == {x.answer.split()[1] for x in counted}


def test_styles_change_the_picture_and_nothing_else() -> None:
    picture = np.random.default_rng(0).integers(0, 256, (32, 32, 3)).astype(np.uint8)
    for name in STYLES:
        changed = styled(picture, name, np.random.default_rng(1))
        assert changed.shape == picture.shape and changed.dtype == np.uint8
        assert (changed == styled(picture, name, np.random.default_rng(1))).all()
        assert (changed == picture).all() == (name == "plain")
    with pytest.raises(ValueError, match="unknown style 'cubist'; choose one of plain"):
        styled(picture, "cubist", np.random.default_rng(1))


def test_a_limit_keeps_the_order_and_is_seeded() -> None:
    stream = stream_named("embedded/task", seed=900, limit=5)
    assert all(len(e.train) == len(e.test) == 5 for e in stream.experiences)
    chosen = limited(range(100), 10, 0, "train")
    assert chosen == sorted(chosen) == limited(range(100), 10, 0, "train") != limited(range(100), 10, 1, "train")
    assert limited(range(3), None, 0, "x") == limited(range(3), 3, 0, "x") == [0, 1, 2]


@pytest.mark.parametrize(
    "arguments, said",
    [
        ({"name": "embedded/smell"}, "unknown stream 'embedded/smell'; choose one of embedded/task, "),
        ({"name": "embedded/task", "seed": -1}, "seed must not be negative, got -1"),
        ({"name": "embedded/task", "limit": 0}, "limit must be at least 1 example a split, got 0"),
    ],
)
def test_mistakes_are_named(arguments: dict, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        stream_named(**arguments)


def test_the_key_of_a_picture_does_not_depend_on_the_question(tmp_path) -> None:
    red, blue = (Image.new("RGB", (4, 4), colour) for colour in ("red", "blue"))
    red.save(tmp_path / "a.png")
    path = tmp_path / "a.png"
    assert image_key(Example("q", "a", (red,))) == image_key(Example("other", "b", (red.copy(),), id="x"))
    assert image_key(Example("q", "a", (path,))) == image_key(Example("r", "b", (tmp_path / "." / "a.png",)))
    keys = {image_key(Example("q", "a", images)) for images in ((red,), (blue,), (red, blue), (path,), ())}
    assert len(keys) == 5
    assert image_key(Example("q", "a")) != image_key(Example("r", "a"))
