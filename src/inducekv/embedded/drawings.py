"""Drawings that the embedded model is trained and tested on: glyphs, scenes, gauges and clocks.

Everything is drawn from signed distances on a 32 x 32 canvas, so a drawing needs nothing but NumPy and a generator,
and the same
generator state always gives the same picture.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

SIZE = 32
"""Width and height of every drawing, in pixels."""

COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.9, 0.12, 0.12),
    "green": (0.1, 0.65, 0.15),
    "blue": (0.15, 0.25, 0.95),
    "yellow": (0.95, 0.85, 0.1),
    "purple": (0.6, 0.15, 0.75),
    "orange": (1.0, 0.5, 0.05),
    "cyan": (0.1, 0.8, 0.85),
    "pink": (1.0, 0.55, 0.75),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring", "star")
SIZES = {"small": 2.3, "medium": 3.1, "large": 4.1}
PLACES = {
    "left": (7.5, 16.0),
    "right": (24.5, 16.0),
    "top": (16.0, 7.5),
    "bottom": (16.0, 24.5),
    "middle": (16.0, 16.0),
}
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight")
COUNTS = NUMBERS[:4]
LEVELS = NUMBERS[:6]
HOURS = NUMBERS[:8]
SCENE_ATTRIBUTES: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "size": tuple(SIZES),
    "count": COUNTS,
    "place": tuple(PLACES),
}
"""The attributes of a scene and their values."""

_ROWS, _COLUMNS = np.mgrid[0 : SIZE * 1.0, 0 : SIZE * 1.0] + 0.5
_CURVE = np.linspace(0, 1, 12)[:, None]
_OFFSETS = {
    1: ((0.0, 0.0),),
    2: ((-1.0, 0.0), (1.0, 0.0)),
    3: ((-1.0, 0.8), (1.0, 0.8), (0.0, -0.9)),
    4: ((-1.0, -1.0), (1.0, -1.0), (-1.0, 1.0), (1.0, 1.0)),
}


@dataclass(frozen=True)
class Glyph:
    """A class of drawings: a few curved strokes, in one colour and one pen width."""

    strokes: np.ndarray  # [strokes, 3, 2]: control points of quadratic curves, in -1..1
    colour: np.ndarray | None  # [3] in 0..1; None: drawn in any light grey
    width: float  # half of the pen's width, in units of -1..1


@dataclass(frozen=True)
class Scene:
    """Equal objects in one cluster; every field is one of the words above."""

    colour: str
    shape: str
    size: str
    count: str
    place: str


@dataclass(frozen=True)
class Gauge:
    """A column of blocks (``kind="bar"``) or a hand on a dial (``kind="clock"``) that shows a number in one colour."""

    kind: str
    colour: str
    level: str


def random_glyph(generator: np.random.Generator) -> Glyph:
    """A glyph class of 2 to 4 strokes; half of the classes have a colour of their own."""
    strokes = generator.uniform(-0.8, 0.8, (generator.integers(2, 5), 3, 2))
    colour = generator.dirichlet([0.5] * 3) ** 0.5 if generator.random() < 0.5 else None
    return Glyph(strokes, colour, float(generator.uniform(0.06, 0.16)))


def random_scene(generator: np.random.Generator, **fixed: str) -> Scene:
    """A scene with every attribute uniform, but for those given."""

    def pick(words: tuple[str, ...]) -> str:
        return words[generator.integers(len(words))]

    scene = Scene(pick(tuple(COLOURS)), pick(SHAPES), pick(tuple(SIZES)), pick(COUNTS), pick(tuple(PLACES)))
    return replace(scene, **fixed)


def random_gauge(generator: np.random.Generator, kind: str, **fixed: str) -> Gauge:
    """A gauge with colour and level uniform, but for those given."""
    levels = LEVELS if kind == "bar" else HOURS
    colours = tuple(COLOURS)
    gauge = Gauge(kind, colours[generator.integers(len(colours))], levels[generator.integers(len(levels))])
    return replace(gauge, **fixed)


def draw(thing: Glyph | Scene | Gauge, generator: np.random.Generator) -> np.ndarray:
    """One noisy drawing of the class: ``uint8 [32, 32, 3]``. Two calls give two different pictures of the same
    thing."""
    if isinstance(thing, Glyph):
        return _draw_glyph(thing, generator)
    return _draw_scene(thing, generator) if isinstance(thing, Scene) else _draw_gauge(thing, generator)


def _draw_glyph(glyph: Glyph, generator: np.random.Generator) -> np.ndarray:
    angle, shear = generator.uniform(-0.25, 0.25), generator.uniform(-0.2, 0.2)
    scale, shift = generator.uniform(0.75, 1.15, 2), generator.uniform(-0.18, 0.18, 2)
    affine = np.array([[np.cos(angle) * scale[0], -np.sin(angle) + shear], [np.sin(angle), np.cos(angle) * scale[1]]])
    strokes = glyph.strokes + generator.normal(0, 0.05, glyph.strokes.shape)
    curve = (
        (1 - _CURVE) ** 2 * strokes[:, None, 0]
        + 2 * _CURVE * (1 - _CURVE) * strokes[:, None, 1]
        + _CURVE**2 * strokes[:, None, 2]
    )
    points = ((curve.reshape(-1, 2) @ affine.T + shift) + 1) * (SIZE / 2)
    squared = (_COLUMNS[..., None] - points[:, 0]) ** 2 + (_ROWS[..., None] - points[:, 1]) ** 2
    distance = np.sqrt(squared.min(-1)) / (SIZE / 2)
    ink = np.clip(1.5 - distance / (glyph.width * generator.uniform(0.8, 1.25)), 0, 1)
    colour = None if glyph.colour is None else glyph.colour * generator.uniform(0.8, 1)
    return _paint(ink, colour, generator)


def _draw_scene(scene: Scene, generator: np.random.Generator) -> np.ndarray:
    radius = SIZES[scene.size] * generator.uniform(0.92, 1.08)
    centre = np.array(PLACES[scene.place]) + generator.uniform(-1.2, 1.2, 2)
    ink = np.zeros((SIZE, SIZE))
    for column, row in _OFFSETS[1 + COUNTS.index(scene.count)]:
        middle = centre + np.array([column, row]) * radius * 1.28 + generator.uniform(-0.25, 0.25, 2)
        distance = _signed_distance(scene.shape, (_COLUMNS - middle[0]) / radius, (_ROWS - middle[1]) / radius)
        ink = np.maximum(ink, np.clip(0.5 - distance * radius, 0, 1))
    return _paint(ink, np.array(COLOURS[scene.colour]) * generator.uniform(0.85, 1), generator)


def _signed_distance(shape: str, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Distance to the shape's edge in units of its radius, negative inside (exact enough at this size)."""
    if shape == "circle":
        return np.hypot(x, y) - 1
    if shape == "square":
        return np.maximum(np.abs(x), np.abs(y)) - 0.88
    if shape == "triangle":
        return np.maximum(y - 0.8, np.abs(x) * 0.87 - 0.5 * y - 0.55)
    if shape == "cross":
        return np.maximum(np.minimum(np.abs(x), np.abs(y)) - 0.3, np.maximum(np.abs(x), np.abs(y)) - 1.0)
    if shape == "ring":
        return np.abs(np.hypot(x, y) - 0.78) - 0.24
    # An astroid: four thin points, told from a cross by its narrow tips.
    return np.sqrt(np.abs(x)) + np.sqrt(np.abs(y)) - 1.22


def _draw_gauge(gauge: Gauge, generator: np.random.Generator) -> np.ndarray:
    colour = np.array(COLOURS[gauge.colour]) * generator.uniform(0.85, 1)
    shift = generator.uniform(-1.5, 1.5, 2)
    x, y = _COLUMNS - 16 - shift[0], _ROWS - 16 - shift[1]
    if gauge.kind == "bar":
        level = 1 + LEVELS.index(gauge.level)
        half = generator.uniform(4.0, 6.0)
        inside = np.clip(half - np.abs(x) + 0.5, 0, 1) * np.clip(12.5 - np.abs(y) + 0.5, 0, 1)
        block = (12.5 - y) / 25 * len(LEVELS)
        gap = np.clip(np.abs(block - np.round(block)) * 4.2 - 0.55, 0, 1)
        ink = inside * gap * (0.22 + 0.78 * (block < level))
        return _paint(ink, colour, generator)
    hour = HOURS.index(gauge.level)
    angle = 2 * np.pi * hour / len(HOURS) + generator.uniform(-0.12, 0.12)
    direction = np.array([np.sin(angle), -np.cos(angle)])
    along = x * direction[0] + y * direction[1]
    hand = np.clip(
        2.2 - np.hypot(x - direction[0] * np.clip(along, 0, 9), y - direction[1] * np.clip(along, 0, 9)), 0, 1
    )
    rim = 0.55 * np.clip(1.3 - np.abs(np.hypot(x, y) - 12.5), 0, 1)
    return _paint(np.maximum(hand, rim), colour, generator)


def _paint(ink: np.ndarray, colour: np.ndarray | None, generator: np.random.Generator) -> np.ndarray:
    """Ink over a dark ground, or one time in six over a light one; ``colour=None`` is whatever stands out from the
    ground."""
    light = generator.random() < 1 / 6
    ground = generator.uniform(0.88, 1) if light else generator.uniform(0, 0.1)
    if colour is None:
        colour = np.ones(3) * (generator.uniform(0, 0.2) if light else generator.uniform(0.8, 1))
    picture = ground + (colour - ground) * ink[..., None] + generator.normal(0, 0.03, (SIZE, SIZE, 3))
    return (np.clip(picture, 0, 1) * 255).astype(np.uint8)
