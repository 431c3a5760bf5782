"""Streams for the embedded model: the four protocols of the paper in miniature, drawn from a seed in seconds.

Names and, where there are glyphs, classes are new for every seed. Tasks are small (32 to 48 examples to learn from, 24
to 40 to answer) so that every method can be run on all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import ClassVar, TypedDict

from inducekv.continual.stream import Stream
from inducekv.continual.streams.kinds import StreamKind, limited
from inducekv.embedded.styles import STYLES
from inducekv.embedded.tasks import Task
from inducekv.embedded.worlds import World

Tasks = dict[str, Callable[[], Task]]


class Sizes(TypedDict):
    """Examples to learn from and to ask."""

    train: int
    test: int


SIZES: Sizes = {"train": 48, "test": 40}


def _task(seed: int) -> Tasks:
    world = World(seed, "embedded/task", glyphs=10)
    colours, shapes = world.some("colour", 4, "values"), world.some("shape", 4, "values")
    return {
        "letters": partial(world.letters, range(5), question="which letter is this?", **SIZES),
        "colours and shapes": partial(world.colour_and_shape, colours[:2], shapes[:3], **SIZES),
        "bars": partial(world.readings, "bar", colours, **SIZES),
        "places": partial(world.attribute, "place", 5, **SIZES),
        "counted things": partial(world.counted, shapes, **SIZES),
        "signs": partial(world.letters, range(5, 10), question="what does the picture show?", **SIZES),
        "clocks": partial(world.readings, "clock", colours, **SIZES),
        "sizes": partial(world.attribute, "size", 3, **SIZES),
    }


def _vqa(seed: int) -> Tasks:
    world = World(seed, "embedded/vqa")
    colours, shapes = world.some("colour", 3, "values"), world.some("shape", 3, "values")
    return {
        "recognition": partial(world.kinds, ("colour", "shape"), 4, "what is this?", **SIZES),
        "location": partial(world.attribute, "place", 5, **SIZES),
        "count": partial(world.counted, shapes, **SIZES),
        "colour": partial(world.attribute, "colour", 4, **SIZES),
        "subcategory": partial(world.kinds, ("colour", "count"), 4, "which product is this?", **SIZES),
        "shape": partial(world.attribute, "shape", 5, **SIZES),
        "colour and shape": partial(world.colour_and_shape, colours[:2], shapes, **SIZES),
        "number": partial(world.attribute, "count", 4, **SIZES),
        "measure": partial(world.told_of_shape, "size", "how big is what?", shapes, **SIZES),
        "size": partial(world.attribute, "size", 3, **SIZES),
    }


def _domain(seed: int) -> Tasks:
    sizes: Sizes = {"train": 40, "test": 30}
    world = World(seed, "embedded/domain")
    shapes = world.some("shape", 3, "values")
    return {style: partial(world.counted, shapes, style=style, **sizes) for style in STYLES}


def _lifelong(seed: int) -> Tasks:
    sizes: Sizes = {"train": 24, "test": 12}
    world = World(seed, "embedded/lifelong", glyphs=10)
    tasks: Tasks = {}
    for part in range(4):
        colours, shapes = (world.some(attribute, 3, str(part)) for attribute in ("colour", "shape"))
        kinds: Tasks = {
            "letters": partial(world.letters, [(2 * part + i) % 10 for i in range(4)], **sizes),
            "counted": partial(world.counted, shapes, **sizes),
            "bars": partial(world.readings, "bar", colours, **sizes),
            "named": partial(world.attribute, ("place", "colour", "shape", "size")[part], 5, **sizes),
            "pairs": partial(world.colour_and_shape, colours[:2], shapes, **sizes),
            "clocks": partial(world.readings, "clock", colours, **sizes),
        }
        tasks |= {f"{kind} {part + 1}": make for kind, make in kinds.items()}
    return tasks


@dataclass(frozen=True)
class EmbeddedStream(StreamKind):
    """A generated stream; needs no files."""

    make: Callable[[int], Tasks] = _task
    needs_root: ClassVar[bool] = False

    def load(self, seed: int = 0, root: Path | None = None, limit: int | None = None) -> Stream:
        parts = []
        for task, make in self.make(seed).items():
            train, test = make()
            parts.append((task, limited(train, limit, seed, "train"), limited(test, limit, seed, "test")))
        return Stream.from_tasks(parts, self.name)

    def check(self, root: Path) -> list[str]:
        return []


def _kind(name: str, summary: str, make: Callable[[int], Tasks], protocol: str) -> EmbeddedStream:
    return EmbeddedStream(name, summary, tuple(make(0)), protocol, make)


EMBEDDED_STREAMS = (
    _kind("embedded/task", "eight tasks with different instructions", _task, "task-incremental"),
    _kind("embedded/vqa", "ten question types over one kind of picture", _vqa, "question-type-incremental"),
    _kind("embedded/domain", "one question, ten drawing styles", _domain, "domain-incremental"),
    _kind("embedded/lifelong", "24 small overlapping datasets under one budget", _lifelong, "lifelong"),
)
