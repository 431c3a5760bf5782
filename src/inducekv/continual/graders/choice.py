"""Multiple choice: which letter an answer means."""

from __future__ import annotations

import re

from inducekv.continual.graders.base import PerAnswer, answer_of
from inducekv.continual.graders.exact import normalised
from inducekv.examples import Example

_LETTERS = "ABCDE"
_ISOLATED = re.compile(r"\b(\w)\b")
_ALONE = re.compile(r"^\W*([A-E])\W*$", re.IGNORECASE)
_LED = re.compile(r"^\W*([A-E])\s*[.):,]", re.IGNORECASE)
_SAID = re.compile(r"\b(?:answer|option|choice)\b(?:\s+is)?\W*\(?([A-E])\b(?!\s+[a-z])", re.IGNORECASE)
_OPTION = re.compile(r"^\W*([A-E])[.)]\s*(.+?)\s*$", re.MULTILINE)


def letter_as_published(text: str) -> str | None:
    """CoIN's rule: the letter alone, or before a full stop and a blank, or the first word of one character in capitals
    (so an article "a" is taken for A)."""
    if text in tuple(_LETTERS):
        return text
    if len(text) >= 3 and text[0] in _LETTERS and text[1:3] == ". ":
        return text[0]
    found = _ISOLATED.search(text)
    return found.group(1).upper() if found else None


def letter_meant(text: str, question: str = "") -> str | None:
    """The letter alone, before `.`, `)`, `:` or `,`, after "the answer is", or the text of one of the question's
    options (lines such as "A. red"); None where it says none or the options' texts leave it open."""
    for pattern in (_ALONE, _LED, _SAID):
        if found := pattern.search(text):
            return found.group(1).upper()
    said = normalised(text)
    named = [letter.upper() for letter, option in _OPTION.findall(question) if normalised(option) == said != ""]
    return named[0] if len(named) == 1 else None


def _faithful(prediction: str, example: Example) -> bool:
    return letter_as_published(prediction) == letter_as_published(answer_of(example)) is not None


def _fixed(prediction: str, example: Example) -> bool:
    expected = letter_meant(answer_of(example), example.question)
    if expected is None:
        raise ValueError(f"example {example.identifier}: the answer names no letter A to E, got {example.answer!r}")
    return letter_meant(prediction, example.question) == expected


LETTER_FAITHFUL = PerAnswer("scienceqa_letter/faithful", _faithful, 'takes the article "a" for the letter A')
LETTER_FIXED = PerAnswer("scienceqa_letter/fixed", _fixed, "letters only where they are meant; an option's text counts")
