"""The same words, whatever the case and punctuation."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Sequence

from inducekv.continual.graders.base import PerAnswer, answer_of

_NOT_WORDS = re.compile(r"[^\w\s.%+-]|(?<!\d)\.|\.(?!\d)|_")


def normalised(text: str) -> str:
    """Lower case, one blank between words, no punctuation (a decimal point, sign or percent stays), Unicode NFKC."""
    text = unicodedata.normalize("NFKC", text).casefold()
    return " ".join(_NOT_WORDS.sub(" ", text).split())


def exact_match(answer: str, expected: str) -> bool:
    """Whether both say the same after `normalised`. An answer that is empty then is never right."""
    said = normalised(answer)
    return bool(said) and said == normalised(expected)


def accuracy(answers: Sequence[str], expected: Sequence[str]) -> float:
    """Percent of answers that match exactly.

    Raises:
        ValueError: no answers, or not as many as expected ones.
    """
    if not expected or len(answers) != len(expected):
        raise ValueError(
            f"expected one answer for each of {len(expected)} questions (at least one), got {len(answers)}"
        )
    return 100.0 * sum(map(exact_match, answers, expected)) / len(expected)


EXACT = PerAnswer("exact", lambda prediction, example: exact_match(prediction, answer_of(example)))
"""One answer, compared after `normalised`."""
