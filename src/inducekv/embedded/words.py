"""Made-up names. The embedded model has to spell them from its small vocabulary; none of them means anything before
an example says so."""

from __future__ import annotations

import numpy as np

_ONSETS = (
    "b",
    "d",
    "f",
    "g",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "r",
    "s",
    "t",
    "v",
    "z",
    "bl",
    "dr",
    "fl",
    "gr",
    "kr",
    "pl",
    "sh",
    "tr",
)
_VOWELS = ("a", "e", "i", "o", "u")
_CODAS = ("", "", "b", "g", "k", "l", "m", "n", "p", "r", "s", "t", "x", "rb", "nk", "ft")
_LETTERS = "abcdefghijklmnopqrstuvwxyz"


def made_up_name(generator: np.random.Generator, syllables: int = 2) -> str:
    """A pronounceable name such as ``"zorblik"``."""

    def pick(parts: tuple[str, ...]) -> str:
        return parts[generator.integers(len(parts))]

    body = "".join(pick(_ONSETS) + pick(_VOWELS) for _ in range(syllables - 1))
    return body + pick(_ONSETS) + pick(_VOWELS) + pick(_CODAS)


def made_up_names(number: int, generator: np.random.Generator, syllables: int = 2) -> list[str]:
    """``number`` different names, in the order drawn."""
    names: dict[str, None] = {}
    while len(names) < number:
        names[made_up_name(generator, syllables)] = None
    return list(names)


def odd_name(generator: np.random.Generator) -> str:
    """A name in one of the forms that real labels take: two words, a word and a number, capitals, or plain letters."""
    kind = generator.integers(4)
    if kind == 0:
        return f"{made_up_name(generator, 1)} {made_up_name(generator)}"
    if kind == 1:
        return f"{made_up_name(generator)} {generator.integers(1, 100)}"
    if kind == 2:
        return made_up_name(generator, 3).capitalize()
    return "".join(_LETTERS[i] for i in generator.integers(0, 26, generator.integers(2, 6)))
