"""The same words, whatever the case and punctuation."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import regex

from inducekv.continual.graders.base import PerAnswer, answer_of

_INVISIBLE = regex.compile(r"\p{Default_Ignorable_Code_Point}")
_W = r"[\p{L}\p{M}\p{N}]"
_SAYS_SOMETHING = regex.compile(_W)
_MINUS = regex.compile(rf"−|[‒–](?=\.?{_W})")
_PUNCTUATION = regex.compile(r"(?![-.*#%&@/\\†‡§¶‰‱′″‴])[\p{P}`\p{Cc}]")
_OPERAND = rf"(?:{_W}|[-+]|\.\d)"
_BETWEEN_OPERANDS = rf"(?:(?<={_W})\*+(?={_OPERAND})|(?<={_W}[^\S\n]+)\*+(?=[^\S\n]+{_OPERAND}))"
_MARKUP = regex.compile(
    rf"(?<!\*)(?!{_BETWEEN_OPERANDS})\*+"
    rf"|(?<!{_W})#+(?!{_W})"  # a heading's; C# and #5 keep theirs
    rf"|\.(?!\d)|(?<=(?!\d){_W}|\.)\."  # no decimal point, with or without a digit before it
)


def normalised(text: str) -> str:
    """A text as `exact_match` compares it: lower case, one blank between words, no punctuation; Unicode NFKC_Casefold.

    By Unicode category: letters, marks (vowel signs, accents), numbers and symbols (`+ = $ ° ✓`) stay; punctuation
    goes, but for `- % & @ / \\ § † ′` and the like, `#` beside a word (`C#`, `#5`), `*` between operands (`a*b`), and
    the decimal point, also a leading one (`.5`). The minus sign and a dash before a number or word are `-`. A text
    without any letter, mark or number is compared as it is. CHOICE.
    """
    text = unicodedata.normalize("NFKC", _INVISIBLE.sub("", text))
    text = unicodedata.normalize("NFKC", text.casefold())
    if _SAYS_SOMETHING.search(text):
        text = _MARKUP.sub(" ", _PUNCTUATION.sub(" ", _MINUS.sub("-", text)))
    return " ".join(text.split())


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
