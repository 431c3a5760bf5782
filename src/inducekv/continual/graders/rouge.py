"""ROUGE-L: how much of the answer's words come in the same order."""

from __future__ import annotations

from collections.abc import Sequence

from inducekv.continual.graders.base import PerAnswer, answer_of
from inducekv.continual.graders.exact import normalised


def common_subsequence(first: Sequence[str], second: Sequence[str]) -> int:
    """Length of the longest common subsequence."""
    lengths = [0] * (len(second) + 1)
    for word in first:
        before = 0
        for place, other in enumerate(second, 1):
            before, lengths[place] = (
                lengths[place],
                before + 1 if word == other else max(lengths[place], lengths[place - 1]),
            )
    return lengths[-1]


def rouge_l(answer: str, expected: str) -> float:
    """F1 of the longest common subsequence of words (Lin 2004), 0 to 1, after `normalised`; words are not stemmed."""
    said, wanted = normalised(answer).split(), normalised(expected).split()
    common = common_subsequence(said, wanted)
    return 2 * common / (len(said) + len(wanted)) if common else 0.0


ROUGE_L = PerAnswer("rouge_l", lambda prediction, example: rouge_l(prediction, answer_of(example)))
"""One answer, in which order and words count."""
