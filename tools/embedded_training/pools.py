"""Pools of drawings to train on, drawn once. Seeds below 1,000 are for training, so no tested class is ever drawn
here."""

from __future__ import annotations

from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from inducekv.embedded.drawings import (
    HOURS,
    LEVELS,
    SCENE_ATTRIBUTES,
    SIZE,
    draw,
    random_gauge,
    random_glyph,
    random_scene,
)


@dataclass
class Pools:
    """Pictures ``uint8 [n, 32, 32, 3]`` and what they show."""

    glyphs: np.ndarray  # [classes, drawings, 32, 32, 3]
    scenes: np.ndarray
    scene_labels: np.ndarray  # [n, 5]: index of each attribute's value, in the order of SCENE_ATTRIBUTES
    gauges: np.ndarray
    gauge_labels: np.ndarray  # [n, 3]: kind (0 bar, 1 clock), colour, level


def _glyphs(job: tuple[int, int, int]) -> np.ndarray:
    seed, classes, drawings = job
    generator = np.random.default_rng([seed, 0])
    pictures = np.zeros((classes, drawings, SIZE, SIZE, 3), np.uint8)
    for row in pictures:
        glyph = random_glyph(generator)
        row[:] = [draw(glyph, generator) for _ in range(drawings)]
    return pictures


def _scenes(job: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    seed, number = job
    generator = np.random.default_rng([seed, 1])
    things = [random_scene(generator) for _ in range(number)]
    labels = [[words.index(getattr(thing, name)) for name, words in SCENE_ATTRIBUTES.items()] for thing in things]
    return np.stack([draw(thing, generator) for thing in things]), np.array(labels)


def _gauges(job: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    seed, number = job
    generator = np.random.default_rng([seed, 2])
    things = [random_gauge(generator, ("bar", "clock")[i % 2]) for i in range(number)]
    levels = {"bar": LEVELS, "clock": HOURS}
    labels = [
        [i % 2, SCENE_ATTRIBUTES["colour"].index(thing.colour), levels[thing.kind].index(thing.level)]
        for i, thing in enumerate(things)
    ]
    return np.stack([draw(thing, generator) for thing in things]), np.array(labels)


def make_pools(seed: int, classes: int, drawings: int, scenes: int, gauges: int, cache: Path | None = None) -> Pools:
    """Draw the pools, or read them back from ``cache`` (an ``.npz`` file) if they are there."""
    if cache is not None and cache.exists():
        with np.load(cache, allow_pickle=False) as stored:
            return Pools(**stored)
    parts = 8
    with ProcessPoolExecutor() as workers:
        glyphs = list(workers.map(_glyphs, [(seed * 100 + i, classes // parts, drawings) for i in range(parts)]))
        scene_parts = list(workers.map(_scenes, [(seed * 100 + i, scenes // parts) for i in range(parts)]))
        gauge_parts = list(workers.map(_gauges, [(seed * 100 + i, gauges // parts) for i in range(parts)]))
    pools = Pools(
        np.concatenate(glyphs),
        *(np.concatenate(column) for column in zip(*scene_parts, strict=True)),
        *(np.concatenate(column) for column in zip(*gauge_parts, strict=True)),
    )
    if cache is not None:
        cache.parent.mkdir(parents=True, exist_ok=True)
        np.savez(cache, **vars(pools))
    return pools
