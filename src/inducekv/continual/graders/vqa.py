"""VQA's soft accuracy: an answer is as right as people agree with it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping

from inducekv.continual.graders.base import PerAnswer, answer_of
from inducekv.examples import Example

_NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
_DIGITS = {word: str(number) for number, word in enumerate(_NUMBERS)} | {"none": "0"}
_ARTICLES = {"a", "an", "the"}
_CONTRACTIONS = {
    word.replace("'", ""): word
    for line in (
        "ain't aren't can't could've couldn't didn't doesn't don't hadn't hasn't haven't he'd he's how's i'm isn't",
        "it'd it'll might've mightn't must've mustn't needn't oughtn't shan't she's should've shouldn't somebody's",
        "someone's something's that'll that's there's they'd they'll they're they've wasn't we've weren't what'll",
        "what're what's what've when's where's who'd who'll who's who've why's won't would've wouldn't y'all you'd",
        "you'll you're you've i've",
    )
    for word in line.split()
}
_PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
_BETWEEN_DIGITS = re.compile(r"(?<=\d),(?=\d)")
_LONE_STOP = re.compile(r"(?<!\d)\.|\.(?!\d)")


def vqa_normalised(text: str) -> str:
    """An answer as VQA's evaluation compares it: lower case, no articles and punctuation, digits for small numbers,
    apostrophes of contractions put back. Written from the published rules; the list of contractions is CHOICE.

    As published it loses a number's leading minus sign and point: "-5" and ".5" are "5".
    """
    text = _BETWEEN_DIGITS.sub("", text.replace("\n", " ").replace("\t", " ").strip())
    for mark in _PUNCTUATION:
        joined = f"{mark} " in text or f" {mark}" in text
        text = text.replace(mark, "" if joined else " ")
    words = [_DIGITS.get(word, word) for word in _LONE_STOP.sub("", text).lower().split()]
    return " ".join(_CONTRACTIONS.get(word, word) for word in words if word not in _ARTICLES)


def vqa_accuracy(prediction: str, references: tuple[str, ...]) -> float:
    """Mean over each person left out of min(1, others who said it / 3): 0..1. An answer empty after `vqa_normalised`
    is wrong.

    Raises:
        ValueError: no references.
    """
    if not references:
        raise ValueError("VQA accuracy needs the people's answers as references, got none")
    said = vqa_normalised(prediction)
    given = Counter(map(vqa_normalised, references))
    agreed, people = given[said], len(references)
    if not said:
        return 0.0
    if people == 1:
        return float(agreed)
    return (agreed * min(1.0, (agreed - 1) / 3) + (people - agreed) * min(1.0, agreed / 3)) / people


def _soft(prediction: str, example: Example) -> float:
    return vqa_accuracy(prediction, example.references or (answer_of(example),))


def _label(prediction: str, example: Example) -> float:
    labels = example.metadata.get("label")
    if not isinstance(labels, Mapping):
        raise ValueError(f"example {example.identifier}: no soft labels to compare with (metadata 'label')")
    said = vqa_normalised(prediction)
    scores = [float(score) for answer, score in labels.items() if said and vqa_normalised(str(answer)) == said]
    return min(1.0, max(scores, default=0.0))


VQA_SOFT = PerAnswer(
    "vqa_soft", _soft, "agreement with ten people, of one reference exact, after VQA's rules: -5 and .5 are 5"
)
VQA_LABEL = PerAnswer("vqa_label", _label, "VQACL: the soft label of the answer; any other answer is wrong")
