"""A made-up world: one vocabulary of made-up names, and tasks that ask for them about drawings.

What tasks of one world share is the vocabulary: a shape has the same name wherever it is asked. Two-word answers are
asked in combinations that no training example of the world shows, so that copying an example's answer is never right.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import product, zip_longest
from typing import TypeVar

import numpy as np
from PIL import Image

from inducekv.embedded.drawings import (
    COLOURS,
    HOURS,
    LEVELS,
    SCENE_ATTRIBUTES,
    Gauge,
    Glyph,
    Scene,
    draw,
    random_gauge,
    random_glyph,
    random_scene,
)
from inducekv.embedded.questions import COUNTED, NAMED_ATTRIBUTE, NAMING, PAIR, UNIT
from inducekv.embedded.styles import styled
from inducekv.embedded.tasks import Task, task_generator
from inducekv.embedded.words import made_up_names
from inducekv.examples import Example

Cell = tuple[str, ...]
T = TypeVar("T")


class World:
    """Names drawn from a seed, and tasks about them. Every task draws from a generator of its own.

    Args:
        seed: 0 or more.
        name: worlds of different names differ for the same seed.
        glyphs: size of the world's alphabet.

    Raises:
        ValueError: a negative seed.
    """

    def __init__(self, seed: int, name: str, glyphs: int = 0) -> None:
        self._seed, self._name = seed, name
        generator = task_generator(seed, name)
        kinds = {**SCENE_ATTRIBUTES, "unit": tuple(COLOURS), "glyph": tuple(map(str, range(glyphs)))}
        words = iter(made_up_names(sum(map(len, kinds.values())), generator))
        self.names = {kind: {value: next(words) for value in values} for kind, values in kinds.items()}
        self._glyphs = [random_glyph(generator) for _ in range(glyphs)]

    def attribute(self, name: str, values: int, *, train: int, test: int) -> Task:
        """One attribute of scenes that differ in all of them, under its made-up names; `values` of its values occur."""
        generator = self._generator_of(f"attribute {name} {values}")
        cells = [(value,) for value in _some(SCENE_ATTRIBUTES[name], values, generator)]

        def example(cell: Cell) -> Example:
            scene = random_scene(generator, **{name: cell[0]})
            return _drawn(scene, NAMED_ATTRIBUTE[name][0], self.names[name][cell[0]], generator)

        return _learned_and_asked(cells, cells, example, train, test, generator)

    def colour_and_shape(self, colours: Sequence[str], shapes: Sequence[str], *, train: int, test: int) -> Task:
        """Two names, in pairs that no training example shows."""
        generator = self._generator_of(f"pairs {colours} {shapes}")

        def example(cell: Cell) -> Example:
            answer = f"{self.names['colour'][cell[0]]} {self.names['shape'][cell[1]]}"
            return _drawn(random_scene(generator, colour=cell[0], shape=cell[1]), PAIR[0], answer, generator)

        shown, hidden = _checkerboard(colours, shapes, tuple(COLOURS), SCENE_ATTRIBUTES["shape"])
        return _learned_and_asked(shown, hidden, example, train, test, generator)

    def told_of_shape(
        self, attribute: str, question: str, shapes: Sequence[str], *, train: int, test: int, style: str = "plain"
    ) -> Task:
        """An attribute in plain words, then the shape's made-up name; asked are values the shape was not shown with."""
        generator = self._generator_of(f"{attribute} of shapes {shapes} {style}")

        def example(cell: Cell) -> Example:
            scene = random_scene(generator, **{attribute: cell[0], "shape": cell[1]})
            return _drawn(scene, question, f"{cell[0]} {self.names['shape'][cell[1]]}", generator, style)

        values = SCENE_ATTRIBUTES[attribute]
        shown, hidden = _checkerboard(values, shapes, values, SCENE_ATTRIBUTES["shape"])
        return _learned_and_asked(shown, hidden, example, train, test, generator)

    def counted(self, shapes: Sequence[str], *, train: int, test: int, style: str = "plain") -> Task:
        """How many of what, in numbers that the shape was not shown in."""
        return self.told_of_shape("count", COUNTED[0], shapes, train=train, test=test, style=style)

    def kinds(self, attributes: tuple[str, str], classes: int, question: str, *, train: int, test: int) -> Task:
        """One name for things that agree in two attributes and differ in the others."""
        generator = self._generator_of(f"kinds {attributes} {classes}")
        every = list(product(*(SCENE_ATTRIBUTES[attribute] for attribute in attributes)))
        cells = _some(every, classes, generator)
        names = dict(zip(cells, made_up_names(classes, generator), strict=True))

        def example(cell: Cell) -> Example:
            scene = random_scene(generator, **dict(zip(attributes, cell, strict=True)))
            return _drawn(scene, question, names[cell], generator)

        return _learned_and_asked(cells, cells, example, train, test, generator)

    def readings(self, kind: str, colours: Sequence[str], *, train: int, test: int) -> Task:
        """A gauge's number in plain words, then its unit, told by the colour; asked are numbers not shown with it."""
        generator = self._generator_of(f"readings {kind} {colours}")

        def example(cell: Cell) -> Example:
            gauge = random_gauge(generator, kind, level=cell[0], colour=cell[1])
            return _drawn(gauge, UNIT[0], f"{cell[0]} {self.names['unit'][cell[1]]}", generator)

        levels = LEVELS if kind == "bar" else HOURS
        shown, hidden = _checkerboard(levels, colours, levels, tuple(COLOURS))
        return _learned_and_asked(shown, hidden, example, train, test, generator)

    def letters(self, glyphs: Sequence[int], *, train: int, test: int, question: str = NAMING[0]) -> Task:
        """Names of some of the world's glyphs."""
        generator = self._generator_of(f"letters {glyphs}")
        cells = [(str(glyph),) for glyph in glyphs]

        def example(cell: Cell) -> Example:
            return _drawn(self._glyphs[int(cell[0])], question, self.names["glyph"][cell[0]], generator)

        return _learned_and_asked(cells, cells, example, train, test, generator)

    def some(self, attribute: str, number: int, purpose: str) -> list[str]:
        """`number` (at least 2) values of a scene's attribute, of which some stand at even and some at odd places of
        all its values: so each has a partner to be shown with in two-word answers."""
        generator = self._generator_of(f"{number} {attribute} {purpose}")
        values = SCENE_ATTRIBUTES[attribute]
        sides = [list(generator.permutation(values[side::2])) for side in (0, 1)]
        most, least = sides if generator.random() < 0.5 else sides[::-1]
        ordered = [str(value) for pair in zip_longest(most, least) for value in pair if value is not None]
        return ordered[:number]

    def _generator_of(self, task: str) -> np.random.Generator:
        return task_generator(self._seed, f"{self._name}: {task}")


def _some(values: Sequence[T], number: int, generator: np.random.Generator) -> list[T]:
    return [values[i] for i in generator.choice(len(values), min(number, len(values)), False)]


def _checkerboard(
    rows: Sequence[str], columns: Sequence[str], all_rows: tuple[str, ...], all_columns: tuple[str, ...]
) -> tuple[list[Cell], list[Cell]]:
    """Combinations to show and to ask. The world's whole table is split, so that no two tasks disagree about one."""
    cells: tuple[list[Cell], list[Cell]] = ([], [])
    for row, column in product(rows, columns):
        cells[(all_rows.index(row) + all_columns.index(column)) % 2].append((row, column))
    return cells


def _learned_and_asked(
    shown: Sequence[Cell],
    hidden: Sequence[Cell],
    example: Callable[[Cell], Example],
    train: int,
    test: int,
    generator: np.random.Generator,
) -> Task:
    """Examples of the cells, each cell as often as any other, in a random order."""
    learned = [shown[i % len(shown)] for i in range(train)]
    asked = [hidden[i % len(hidden)] for i in range(test)]
    return (
        [example(learned[i]) for i in generator.permutation(train)],
        [example(asked[i]) for i in generator.permutation(test)],
    )


def _drawn(
    thing: Glyph | Scene | Gauge, question: str, answer: str, generator: np.random.Generator, style: str = "plain"
) -> Example:
    picture = styled(draw(thing, generator), style, generator)
    return Example(question, answer, (Image.fromarray(picture),))
