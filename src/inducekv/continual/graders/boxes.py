"""Grounding: whether a box overlaps the right one enough."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

from inducekv.continual.graders.base import PerAnswer, answer_of
from inducekv.error_text import shown
from inducekv.examples import Example

_NUMBER = re.compile(r"-?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")
Box = tuple[float, float, float, float]


def intersection_over_union(one: Sequence[float], other: Sequence[float]) -> float:
    """Of two boxes (left, top, right, bottom), 0..1; 0 where a box has no area."""

    def area(box: Sequence[float]) -> float:
        return max(0.0, box[2] - box[0]) * max(0.0, box[3] - box[1])

    shared = area([*map(max, one[:2], other[:2]), *map(min, one[2:], other[2:])])
    whole = area(one) + area(other) - shared
    return shared / whole if whole > 0 and area(one) > 0 and area(other) > 0 else 0.0


def box_as_published(text: str) -> Box | None:
    """CoIN's parser: brackets stripped, then the first and the last character dropped (which cuts the last digit)."""
    return _four(text.strip("[]")[1:-1].split(","))


def box_in(text: str) -> Box | None:
    """The four numbers in a text, whatever stands around them; None where there are not exactly four."""
    return _four(_NUMBER.findall(text))


def _four(numbers: Sequence[str]) -> Box | None:
    try:
        values = [float(number) for number in numbers]
    except ValueError:
        return None
    return (
        (values[0], values[1], values[2], values[3]) if len(values) == 4 and all(map(math.isfinite, values)) else None
    )


def _expected(example: Example) -> Box:
    text = str(example.metadata.get("answer_bbox") or answer_of(example))
    box = box_in(text)
    if box is None:
        raise ValueError(f"example {example.identifier}: the answer is no box of four numbers, got {shown(text)}")
    return box


def _faithful(prediction: str, example: Example) -> bool:
    box = box_as_published(prediction)
    return box is not None and intersection_over_union(box, _expected(example)) > 0.5


def _fixed(prediction: str, example: Example) -> bool:
    expected, box = _expected(example), box_in(prediction)
    return box is not None and intersection_over_union(box, expected) > 0.5


BOX_FAITHFUL = PerAnswer("iou/faithful", _faithful, "the published parser cuts the first and the last character off")
BOX_FIXED = PerAnswer("iou/fixed", _fixed, "IoU over 0.5; what holds not exactly four numbers is wrong and counted")
