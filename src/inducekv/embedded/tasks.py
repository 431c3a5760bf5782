"""Tasks to teach the embedded model: new classes, new names, drawn from a seed. None of their classes was drawn in
training.

Training draws from generators seeded below 1,000; tasks draw from seeds above, and names are made up anew for each.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from PIL import Image

from inducekv.embedded.drawings import (
    COLOURS,
    COUNTS,
    HOURS,
    LEVELS,
    SCENE_ATTRIBUTES,
    SHAPES,
    SIZE,
    Gauge,
    Glyph,
    Scene,
    draw,
    random_gauge,
    random_glyph,
    random_scene,
)
from inducekv.embedded.questions import BASE, COUNTED, NAMED_ATTRIBUTE, NAMING, PAIR, UNIT
from inducekv.embedded.words import made_up_names
from inducekv.examples import Example

Task = tuple[list[Example], list[Example]]
"""Training and test examples."""

FIRST_TASK_SEED = 1_000

INK = 1.4
"""How much handwritten digits are brightened; the data set's averaging over 4 x 4 pixels left their strokes grey."""

DIGIT = 20
"""Pixels that a handwritten digit is enlarged to; the data set cuts its margins off, this gives them back."""


def task_generator(seed: int, task: str) -> np.random.Generator:
    """The generator of one named task: its draws depend on nothing but the name and the seed.

    Raises:
        ValueError: a negative seed.
    """
    if seed < 0:
        raise ValueError(f"seed must not be negative, got {seed}")
    return np.random.default_rng([FIRST_TASK_SEED + seed, *task.encode()])


def _drawn(thing: Glyph | Scene | Gauge, question: str, answer: str, generator: np.random.Generator) -> Example:
    return Example(question, answer, (Image.fromarray(draw(thing, generator)),))


def alphabet(seed: int, *, classes: int = 8, train: int = 10, test: int = 10, task: str = "alphabet") -> Task:
    """Glyphs of a new alphabet under made-up names; ``train`` and ``test`` drawings a class."""
    generator = task_generator(seed, task)
    glyphs = [random_glyph(generator) for _ in range(classes)]
    names = made_up_names(classes, generator)
    parts = []
    for number in (train, test):
        pairs = [(g, n) for g, n in zip(glyphs, names, strict=True) for _ in range(number)]
        parts.append([_drawn(g, NAMING[0], n, generator) for g, n in pairs])
    return parts[0], parts[1]


def digits(seed: int, *, train: int = 10, test: int = 10) -> Task:
    """Handwritten digits of scikit-learn (8 x 8 pixels, enlarged, with a margin), named "zero" to "nine".

    Raises:
        ImportError: scikit-learn is missing; it comes with ``inducekv[bench]``.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("handwritten digits need scikit-learn: pip install 'inducekv[bench]'") from error
    generator = task_generator(seed, "digits")
    data = load_digits()
    words = ("zero", *HOURS, "nine")
    parts: Task = ([], [])
    for digit, word in enumerate(words):
        chosen = generator.permutation(np.flatnonzero(data.target == digit))[: train + test]
        for i, index in enumerate(chosen):
            ink = np.minimum(data.images[index] * (INK * 255 / 16), 255)
            small = Image.fromarray(ink.astype(np.uint8))
            picture = Image.new("RGB", (SIZE, SIZE))
            picture.paste(small.resize((DIGIT, DIGIT), Image.Resampling.BICUBIC), ((SIZE - DIGIT) // 2,) * 2)
            parts[i >= train].append(Example("which number is this?", word, (picture,)))
    return parts


def pairs(seed: int, *, colours: int = 4, shapes: int = 4, train: int = 10, test: int = 80) -> Task:
    """Two made-up words, one for the colour and one for the shape. The pairs asked in the test are in no training
    example.

    ``train`` drawings for each pair shown; every colour and shape is shown in some pair, half of the pairs never are.
    """
    generator = task_generator(seed, "pairs")
    chosen_colours = [tuple(COLOURS)[i] for i in generator.choice(len(COLOURS), colours, False)]
    chosen_shapes = [SHAPES[i] for i in generator.choice(len(SHAPES), shapes, False)]
    words = made_up_names(colours + shapes, generator)
    colour_words = dict(zip(chosen_colours, words[:colours], strict=True))
    shape_words = dict(zip(chosen_shapes, words[colours:], strict=True))

    def example(colour: str, shape: str) -> Example:
        scene = random_scene(generator, colour=colour, shape=shape)
        return _drawn(scene, PAIR[0], f"{colour_words[colour]} {shape_words[shape]}", generator)

    cells = [(c, s) for c in range(colours) for s in range(shapes)]
    shown = [(chosen_colours[c], chosen_shapes[s]) for c, s in cells if (c + s) % 2 == 0]
    held = [(chosen_colours[c], chosen_shapes[s]) for c, s in cells if (c + s) % 2 == 1]
    asked = [held[i % len(held)] for i in range(test)]
    return [example(*cell) for cell in shown for _ in range(train)], [example(*cell) for cell in asked]


def gauges(seed: int, *, kind: str = "bar", colours: int = 4, train: int = 12, test: int = 80) -> Task:
    """A reading and its unit: the number is seen on the gauge, the unit is a made-up word told by its colour.

    Each colour is shown at half of the levels in training and asked at the other half.
    """
    generator = task_generator(seed, f"gauges {kind}")
    levels = LEVELS if kind == "bar" else HOURS
    chosen = [tuple(COLOURS)[i] for i in generator.choice(len(COLOURS), colours, False)]
    units = dict(zip(chosen, made_up_names(colours, generator), strict=True))
    shown = {c: set(generator.permutation(levels)[: len(levels) // 2].tolist()) for c in chosen}

    def example(colour: str, level: str) -> Example:
        return _drawn(
            random_gauge(generator, kind, colour=colour, level=level), UNIT[0], f"{level} {units[colour]}", generator
        )

    learned = [example(c, sorted(shown[c])[i % len(shown[c])]) for c in chosen for i in range(train)]
    hidden = [(c, level) for c in chosen for level in levels if level not in shown[c]]
    return learned, [example(*hidden[i % len(hidden)]) for i in range(test)]


def counts(seed: int, *, shapes: int = 5, train: int = 10, test: int = 80) -> Task:
    """How many of what: the number is counted, the thing's name is made up. Each shape is asked in numbers it was not
    shown in."""
    generator = task_generator(seed, "counts")
    chosen = [SHAPES[i] for i in generator.choice(len(SHAPES), shapes, False)]
    names = dict(zip(chosen, made_up_names(shapes, generator), strict=True))
    shown = {s: set(generator.permutation(COUNTS)[:2].tolist()) for s in chosen}

    def example(shape: str, count: str) -> Example:
        scene = random_scene(generator, shape=shape, count=count)
        return _drawn(scene, COUNTED[0], f"{count} {names[shape]}", generator)

    learned = [example(s, sorted(shown[s])[i % 2]) for s in chosen for i in range(train)]
    hidden = [(s, count) for s in chosen for count in COUNTS if count not in shown[s]]
    return learned, [example(*hidden[i % len(hidden)]) for i in range(test)]


def attribute(seed: int, name: str, *, train: int = 64, test: int = 80) -> Task:
    """Scenes that differ in colour, shape, size, count and place; one of these is asked under made-up names."""
    if name not in SCENE_ATTRIBUTES:
        raise ValueError(f"unknown attribute {name!r}; choose one of {', '.join(SCENE_ATTRIBUTES)}")
    generator = task_generator(seed, f"attribute {name}")
    names = dict(zip(SCENE_ATTRIBUTES[name], made_up_names(len(SCENE_ATTRIBUTES[name]), generator), strict=True))

    def example() -> Example:
        scene = random_scene(generator)
        return _drawn(scene, NAMED_ATTRIBUTE[name][0], names[getattr(scene, name)], generator)

    return [example() for _ in range(train)], [example() for _ in range(test)]


def base_skills(number: int, seed: int, skills: Sequence[str] = ("colour", "shape", "count", "place")) -> list[Example]:
    """Questions in plain words about new drawings, ``number`` in all: what the model can do without any memory."""
    generator = task_generator(seed, "base")
    examples = []
    for i in range(number):
        skill = skills[i % len(skills)]
        question = BASE[skill][int(generator.integers(len(BASE[skill])))]
        scene = random_scene(generator)
        examples.append(_drawn(scene, question, getattr(scene, skill), generator))
    return examples


def demo_stream(seed: int) -> list[tuple[str, list[Example], list[Example]]]:
    """The demo's tasks, in order: name, training examples, test examples. The last three can only be solved by
    composing or reading.

    Raises:
        ImportError: scikit-learn, which has the handwritten digits, is missing.
    """
    first, second, *others = drawn_tasks(seed)
    return [first, second, ("handwritten digits", *digits(seed)), *others]


def drawn_tasks(seed: int) -> list[tuple[str, list[Example], list[Example]]]:
    """Those of the demo's tasks that are drawn, which needs no data: all but the handwritten digits."""
    tasks: dict[str, Callable[[], Task]] = {
        "first alphabet": lambda: alphabet(seed, task="first alphabet"),
        "second alphabet": lambda: alphabet(seed, task="second alphabet"),
        "colour-shape names": lambda: pairs(seed),
        "gauges with units": lambda: gauges(seed),
        "counted things": lambda: counts(seed),
    }
    return [(name, *make()) for name, make in tasks.items()]
