"""The points of the search: ways of storing an entry, and what lies next to each."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from inducekv.config import InduceKVConfig, KeyDtype, PayloadDtype

LADDERS: dict[str, tuple[int, ...]] = {
    "keep_answer": (0, 1, 2, 4),
    "mean_pool": (1, 2, 4, 8),
    "shift_kv": (2, 4, 8),
}
"""Numbers of tokens tried for each method. CHOICE: few, since bytes are what is short."""
PAYLOAD_DTYPES: tuple[PayloadDtype, ...] = ("int2", "int3", "int4", "int8", "float16")
KEY_DTYPES: tuple[KeyDtype, ...] = ("int4", "int8", "float16")
"""Number formats from the smallest to the largest."""


@dataclass(frozen=True)
class Point:
    """One way of storing entries.

    Attributes:
        payload, payload_tokens, payload_dtype, key_dtype, payload_layers: as in `InduceKVConfig`; layers are given.
    """

    payload: str
    payload_tokens: int
    payload_dtype: PayloadDtype
    key_dtype: KeyDtype
    payload_layers: tuple[int, ...]

    @property
    def method(self) -> tuple[str, int]:
        """What decides which tokens stay."""
        return self.payload, self.payload_tokens

    def changes(self) -> dict[str, Any]:
        """The point as fields of a configuration."""
        return {name: getattr(self, name) for name in self.__dataclass_fields__}

    @property
    def label(self) -> str:
        """For tables: `keep_answer 0, int4, keys int8, layers 0-4`."""
        layers = spans(self.payload_layers)
        return f"{self.payload} {self.payload_tokens}, {self.payload_dtype}, keys {self.key_dtype}, layers {layers}"


def spans(layers: tuple[int, ...]) -> str:
    """Layers in few letters: `0-4`, `1-2,4`."""
    runs: list[list[int]] = []
    for layer in layers:
        if runs and layer == runs[-1][-1] + 1:
            runs[-1].append(layer)
        else:
            runs.append([layer])
    return ",".join(str(run[0]) if len(run) == 1 else f"{run[0]}-{run[-1]}" for run in runs)


def start_of(config: InduceKVConfig, layers: tuple[int, ...]) -> Point:
    """The point of a configuration that stores `layers`; the default's tokens if it is no point of the search."""
    payload = config.payload if isinstance(config.payload, str) else "keep_answer"
    tokens = config.payload_tokens
    if tokens not in LADDERS.get(payload, ()):
        payload, tokens = "keep_answer", 0
    dtype: PayloadDtype = config.payload_dtype if config.payload_dtype in PAYLOAD_DTYPES else "float16"
    return Point(payload, tokens, dtype, config.key_dtype, layers)


def grid(start: Point, layers: tuple[int, ...], methods: tuple[tuple[str, int], ...]) -> list[Point]:
    """The coarse grid: number formats, parts of the layers, and every method in every format; the dearest last.

    CHOICE: keys are as in `start`, and only its neighbours vary them.

    Args:
        start: measured first.
        layers: those that may be stored, ascending.
        methods: pairs of method and tokens.
    """
    formats = [replace(start, payload_dtype=dtype) for dtype in PAYLOAD_DTYPES]
    points = [start, *formats]
    for part in parts(layers):
        points += [replace(p, payload_layers=part) for p in formats[:2]]
    points += [replace(p, payload=name, payload_tokens=count) for name, count in methods for p in formats]
    return list(dict.fromkeys(points))


def parts(layers: tuple[int, ...]) -> list[tuple[int, ...]]:
    """Layers that a coarse search tries: all, the upper and the lower half, every other, the upper quarter."""
    half, quarter = len(layers) // 2, max(1, len(layers) // 4)
    some = [layers, layers[half:], layers[: len(layers) - half], layers[len(layers) % 2 - 1 :: 2], layers[1::2]]
    some.append(layers[-quarter:])
    return [part for part in dict.fromkeys(some) if part]


def neighbours(point: Point, layers: tuple[int, ...], methods: tuple[tuple[str, int], ...]) -> list[Point]:
    """Points one step away: a number format, the tokens, or an eighth of the layers more or fewer."""
    near = []
    for name, ladder in (("payload_dtype", PAYLOAD_DTYPES), ("key_dtype", KEY_DTYPES)):
        near += [replace(point, **{name: step}) for step in steps(ladder, getattr(point, name))]
    counts = sorted(count for name, count in methods if name == point.payload)
    near += [replace(point, payload_tokens=step) for step in steps(counts, point.payload_tokens)]
    size = max(1, len(layers) // 8)
    for start in range(0, len(layers), size):
        block = set(layers[start : start + size])
        kept = set(point.payload_layers)
        changed = kept - block if block <= kept else kept | block
        if changed:
            near.append(replace(point, payload_layers=tuple(sorted(changed))))
    return [other for other in dict.fromkeys(near) if other != point]


def steps(ladder: Any, at: Any) -> list[Any]:
    """The values next to one on a ladder."""
    if at not in ladder:
        return []
    place = list(ladder).index(at)
    return [*ladder[max(0, place - 1) : place], *ladder[place + 1 : place + 2]]
