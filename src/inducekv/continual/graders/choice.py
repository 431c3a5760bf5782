"""Multiple choice: which letter an answer means."""

from __future__ import annotations

import re

from inducekv.continual.graders.base import PerAnswer, answer_of
from inducekv.continual.graders.exact import normalised
from inducekv.error_text import shown
from inducekv.examples import Example

_LETTERS = "ABCDE"
_ISOLATED = re.compile(r"\b(\w)\b")

_MARKS = (
    r"[\s*_\"'“”‘’`$({\[\\<]{0,40}"  # between a word and its letter: Markdown, brackets, LaTeX; no end of a sentence
)
_LETTER = r"(?-i:([A-E])|([b-e])|(a)(?!\s+\w))(?![\w+#'’]|-\w|\.\w)"  # "a" before a word is the article
_IS = r"(?:\s+(?:is|was|be|would\s+be|should\s+be|must\s+be|will\s+be)\b|\s*[:=→]|\s*[-=]>)+"
_NOUN = r"(?:answer|option|choice|letter)"
_FIRST_NOT = r"(?:not\s+\(?[A-E]\)?,?\s+but\s+)?"  # "not A but B"
_DECLARED = re.compile(
    rf"\b{_NOUN}\b[*_]*{_IS}{_MARKS}{_FIRST_NOT}(?:the\s+)?(?:(?:correct\s+)?{_NOUN}\b)?{_MARKS}{_LETTER}"
    rf"|\\boxed\s*{{{_MARKS}(?:(?:text|mathrm|mathbf)\s*{{)?{_MARKS}{_LETTER}"
    rf"|\b(?:choose|chose|pick|select|go\s+with)\s+(?:the\s+)?(?:{_NOUN}\b)?{_MARKS}(?-i:([A-E])\b)(?![+#'’-])"
    r"|\b(?-i:([A-E])\b)[*_\"'”’`)\]]*\s+(?:is|was|must\s+be|should\s+be|would\s+be)\s+(?:the\s+|most\s+likely\s+)?"
    r"(?:correct|right|best|answer)\b"
    r"|^[^\w\n]*([A-E])[^\w\n]*$",
    re.IGNORECASE | re.MULTILINE,
)
_LED = re.compile(r"^\W*([A-E])(?:\s*[.):,](?!\w)|\s+(?-i:because|since|as)\b)", re.IGNORECASE)
_NAMED = re.compile(rf"\b{_NOUN}\b{_MARKS}{_LETTER}", re.IGNORECASE)
_NOT = re.compile(r"(?:\b(?:not|never|neither|nor|cannot)|n['’]t)\s+(?:\w+\s+){0,3}$", re.IGNORECASE)
_OPTION = re.compile(r"^\W*([A-E])[.)]\s*(.+?)\s*$", re.MULTILINE)


def letter_as_published(text: str) -> str | None:
    """CoIN's rule: the letter alone, or before a full stop and a blank, or the first word of one character in capitals
    (so an article "a" is taken for A, and an option that is then rejected for the answer)."""
    if text in tuple(_LETTERS):
        return text
    if len(text) >= 3 and text[0] in _LETTERS and text[1:3] == ". ":
        return text[0]
    found = _ISOLATED.search(text)
    return found.group(1).upper() if found else None


def letter_meant(text: str, question: str = "") -> str | None:
    """The letter A to E that a text declares, or None where it declares none.

    CHOICE: the last of what declares a letter ("the answer is B", `\\boxed{B}`, "I choose B", "B is correct", a line
    that holds nothing else); else one that the text begins with ("B. blue", "(B) ..."); else the last one that is named
    ("option B"); else the one of the question's options (lines such as "A. red") that is the whole text. What is said
    not to be it ("not option A") does not count.
    """
    if found := _last(_DECLARED, text) or _last(_LED, text) or _last(_NAMED, text):
        return found
    said = normalised(text)
    named = [letter.upper() for letter, option in _OPTION.findall(question) if normalised(option) == said != ""]
    return named[0] if len(named) == 1 else None


def _last(pattern: re.Pattern[str], text: str) -> str | None:
    """The letter of the last match that is not negated, in capitals."""
    letters = [
        next(filter(None, found.groups()))
        for found in pattern.finditer(text)
        if not _NOT.search(text, max(0, found.start() - 60), found.start())
    ]
    return letters[-1].upper() if letters else None


def _faithful(prediction: str, example: Example) -> bool:
    return letter_as_published(prediction) == letter_as_published(answer_of(example)) is not None


def _fixed(prediction: str, example: Example) -> bool:
    expected = letter_meant(answer_of(example), example.question)
    if expected is None:
        raise ValueError(
            f"example {example.identifier}: the answer names no letter A to E, got {shown(example.answer)}"
        )
    return letter_meant(prediction, example.question) == expected


LETTER_FAITHFUL = PerAnswer(
    "scienceqa_letter/faithful",
    _faithful,
    'the first lone letter: the article "a" is A, an option rejected later counts',
)
LETTER_FIXED = PerAnswer(
    "scienceqa_letter/fixed",
    _fixed,
    "the letter declared last; letters only where they are meant; an option's text counts",
)
