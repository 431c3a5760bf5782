"""Ten styles that one drawing can have: what differs between the domains of a domain-incremental stream.

None of them was drawn in training but `plain`.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Style = Callable[[np.ndarray, np.random.Generator], np.ndarray]
"""From a picture, floats in 0..1 `[32, 32, 3]`, to another; the generator decides what varies within the style."""


def _edges(picture: np.ndarray) -> np.ndarray:
    """How much the picture changes at each pixel, 0..1 `[32, 32, 1]`."""
    rows, columns = (np.abs(np.gradient(picture, axis=axis)).max(-1, keepdims=True) for axis in (0, 1))
    return np.clip(2.5 * np.maximum(rows, columns), 0, 1)


def _blurred(picture: np.ndarray, times: int) -> np.ndarray:
    for _ in range(times):
        padded = np.pad(picture, ((1, 1), (1, 1), (0, 0)), mode="edge")
        picture = (padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:] + 2 * picture) / 6
    return picture


def _stripes(size: int, period: float, generator: np.random.Generator) -> np.ndarray:
    """Diagonal stripes, 0..1 `[size, size, 1]`."""
    rows, columns = np.mgrid[0:size, 0:size]
    phase = generator.uniform(0, 2 * np.pi)
    return (0.5 + 0.5 * np.sin(2 * np.pi * (rows + columns) / period + phase))[..., None]


def _plain(picture: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return picture


def _negative(picture: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return 1 - picture


def _outlined(picture: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return picture * (0.7 + 0.3 * _edges(picture))


def _hatched(picture: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return picture * (0.45 + 0.55 * _stripes(len(picture), 4.0, generator))


def _blueprint(picture: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    ink = np.abs(picture - np.median(picture, axis=(0, 1))).max(-1, keepdims=True)
    ground = np.array([0.0, 0.05, 0.22])
    return ground + (np.array([0.55, 0.85, 1.0]) - ground) * np.clip(1.3 * ink, 0, 1)


def _faded(picture: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return 0.05 + 0.75 * picture


def _out_of_focus(picture: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return _blurred(picture, 1)


def _grainy(picture: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return picture + generator.normal(0, 0.13, picture.shape)


def _newsprint(picture: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    ink = np.abs(picture - np.median(picture, axis=(0, 1))).max(-1, keepdims=True)
    grey = 0.92 - 0.85 * np.clip(1.3 * ink, 0, 1) + generator.normal(0, 0.03, ink.shape)
    return grey * np.ones(3)


def _sepia(picture: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    return picture.mean(-1, keepdims=True) ** 0.7 * np.array([1.0, 0.75, 0.45])


STYLES: dict[str, Style] = {
    "plain": _plain,
    "negative": _negative,
    "outlined": _outlined,
    "hatched": _hatched,
    "blueprint": _blueprint,
    "faded": _faded,
    "out of focus": _out_of_focus,
    "grainy": _grainy,
    "newsprint": _newsprint,
    "sepia": _sepia,
}


def styled(picture: np.ndarray, style: str, generator: np.random.Generator) -> np.ndarray:
    """A drawing `uint8 [32, 32, 3]` in another style, in the same form.

    Raises:
        ValueError: an unknown style.
    """
    if style not in STYLES:
        raise ValueError(f"unknown style {style!r}; choose one of {', '.join(STYLES)}")
    changed = STYLES[style](picture / 255, generator)
    return (np.clip(changed, 0, 1) * 255).round().astype(np.uint8)
