"""Medical questions: closed ones by the first word, open ones by the words that were named."""

from __future__ import annotations

from collections import Counter

from inducekv.continual.graders.base import PerAnswer, answer_of
from inducekv.continual.graders.exact import exact_match, normalised
from inducekv.examples import Example


def is_closed(example: Example) -> bool:
    """Whether the answer is to be chosen: `answer_type` says CLOSED, or without it the answer is yes or no."""
    kind = str(example.metadata.get("answer_type") or "").strip().casefold()
    if kind:
        return kind == "closed"
    return normalised(answer_of(example)) in ("yes", "no")


def _closed(prediction: str, example: Example) -> bool:
    expected, said = normalised(answer_of(example)), normalised(prediction)
    if expected in ("yes", "no"):
        return said.split()[:1] == [expected]
    return bool(said) and said == expected


def token_recall(prediction: str, answer: str) -> float:
    """Share of the answer's words that the prediction has, 0..1 (LLaVA-Med's score of open ones)."""
    expected = Counter(normalised(answer).split())
    found = expected & Counter(normalised(prediction).split())
    return found.total() / max(1, expected.total())


def _exact(prediction: str, example: Example) -> float:
    if is_closed(example):
        return float(_closed(prediction, example))
    return float(exact_match(prediction, answer_of(example)))


def _recall(prediction: str, example: Example) -> float:
    if is_closed(example):
        return float(_closed(prediction, example))
    return token_recall(prediction, answer_of(example))


MEDICAL_EXACT = PerAnswer("medical_exact", _exact, "closed: by the first word where it is yes or no; open: exact")
MEDICAL_RECALL = PerAnswer("medical_recall", _recall, "closed the same; open: recall of the answer's words")
