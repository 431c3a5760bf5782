"""Answers that count when they hold the expected words."""

from __future__ import annotations

import re
from pathlib import Path

from inducekv.continual.graders.base import PerAnswer, answer_of
from inducekv.continual.graders.exact import exact_match, normalised
from inducekv.examples import Example

_DELIMITER = re.compile(r"[ .,]")


def holds_words(text: str, words: str) -> bool:
    """Whether the words occur in the text, whole and in their order, after `normalised`; no words never do."""
    said, expected = normalised(text), normalised(words)
    return bool(expected) and f" {expected} " in f" {said} "


def _imagenet_faithful(prediction: str, example: Example) -> bool:
    return answer_of(example) in prediction or prediction in answer_of(example)


def _imagenet_fixed(prediction: str, example: Example) -> bool:
    answer = answer_of(example)
    return holds_words(prediction, answer) or any(holds_words(prediction, name) for name in answer.split(","))


def _domain_faithful(prediction: str, example: Example) -> bool:
    said, expected = prediction.lower(), answer_of(example).lower()
    if len(expected.split()) > 1 or len(said.split()) == 1:
        return expected in said
    return expected in _DELIMITER.split(said)


def _domain_fixed(prediction: str, example: Example) -> bool:
    return holds_words(prediction, answer_of(example))


def _pathology_faithful(prediction: str, example: Example) -> bool:
    return answer_of(example).lower() in prediction.lower()


def _pathology_fixed(prediction: str, example: Example) -> bool:
    expected = normalised(answer_of(example))
    if expected in ("yes", "no"):
        return normalised(prediction).split()[:1] == [expected]
    return holds_words(prediction, expected)


def _states(text: str) -> set[str]:
    return {state for part in text.split(",") if (state := normalised(part))}


def _science_faithful(prediction: str, example: Example) -> float:
    answer = answer_of(example)
    if not any(isinstance(image, Path) and "MapQA" in str(image) for image in example.images):
        return float(prediction.lower() == answer.lower())
    if "which states" in example.question.lower():
        expected = _states(answer)
        return len(_states(prediction) & expected) / max(1, len(expected))
    return float(answer.lower() in prediction.lower())


def _science_fixed(prediction: str, example: Example) -> float:
    answer = answer_of(example)
    if "which states" in example.question.lower():
        said, expected = _states(prediction), _states(answer)
        return len(said & expected) / max(1, len(said | expected))
    return float(exact_match(prediction, answer) or (len(normalised(answer)) > 1 and holds_words(prediction, answer)))


IMAGENET_FAITHFUL = PerAnswer("imagenet_containment/faithful", _imagenet_faithful, "an empty prediction is right")
IMAGENET_FIXED = PerAnswer("imagenet_containment/fixed", _imagenet_fixed, "holds a whole name of the class")
DOMAIN_FAITHFUL = PerAnswer("domain_containment/faithful", _domain_faithful, 'one word "unknown" holds "no"')
DOMAIN_FIXED = PerAnswer("domain_containment/fixed", _domain_fixed, "holds the answer's words, whole")
PATHOLOGY_FAITHFUL = PerAnswer("pathology_containment/faithful", _pathology_faithful, '"normal" holds the answer "no"')
PATHOLOGY_FIXED = PerAnswer("pathology_containment/fixed", _pathology_fixed, "yes and no by the first word")
SCIENCE_FAITHFUL = PerAnswer("science/faithful", _science_faithful, "naming all states gets all of the score")
SCIENCE_FIXED = PerAnswer("science/fixed", _science_fixed, "states by intersection over union")
