"""Slot filling: answers such as "artist = Monk Boudreaux; service = youtube"."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from inducekv.continual.graders.base import PerAnswer, answer_of, checked_lengths
from inducekv.continual.graders.exact import normalised
from inducekv.examples import Example

_SEPARATOR = re.compile(r"[;\n]")
Slots = Counter[tuple[str, str]]
"""How often each (slot, words) is said."""


def slots_in(text: str) -> Slots:
    """The (slot, words) pairs of `slot = words` parts between semicolons or line breaks, both `normalised`.

    A part without a slot or words is a pair too, with that place empty: it is said and never right.
    """
    pairs = (part.partition("=") for part in _SEPARATOR.split(text) if part.strip())
    return Counter(
        (normalised(slot) if equals else "", normalised(words if equals else slot)) for slot, equals, words in pairs
    )


def _expected(example: Example) -> Slots:
    slots = slots_in(answer_of(example))
    if not slots or not all(slot and words for slot, words in slots):
        raise ValueError(
            f"example {example.identifier}: expected an answer of the form 'slot = words; slot = words', "
            f"got {example.answer!r:.200}"
        )
    return slots


def _exact(prediction: str, example: Example) -> bool:
    return slots_in(prediction) == _expected(example)


class SlotF1:
    """Micro F1 over (slot, words) pairs: twice the right pairs over the pairs said and expected in the whole task.

    A pair counts as often as it is said. `scores` are the F1 of each answer, moved within 0..1 (towards 0 or 1, all in
    one proportion) so that their mean is the task's micro F1, which is no mean of theirs.
    """

    name = "slot_f1"

    def scores(self, predictions: Sequence[str], examples: Sequence[Example]) -> np.ndarray:
        checked_lengths(predictions, examples)
        said, expected = [slots_in(prediction) for prediction in predictions], [_expected(each) for each in examples]
        right = np.array([2 * (s & e).total() for s, e in zip(said, expected, strict=True)], dtype=np.float64)
        pairs = np.array([s.total() + e.total() for s, e in zip(said, expected, strict=True)], dtype=np.float64)
        each = right / pairs
        return _moved(each, right.sum() / pairs.sum()) if len(each) else each


def _moved(each: np.ndarray, mean: float) -> np.ndarray:
    """Numbers of 0..1 so that they have another mean and stay in 0..1."""
    present = each.mean()
    if mean <= present:
        return each * (mean / present if present > 0 else 1.0)
    return 1 - (1 - each) * ((1 - mean) / (1 - present))


SLOT_EXACT = PerAnswer("slot_exact", _exact, "all (slot, words) pairs and no others, in any order")
SLOT_F1 = SlotF1()
