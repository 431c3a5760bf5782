"""One colour, line and marker a method, the same in every picture."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

INK, SOFT, GRID = "#1d2b36", "#5d6d7a", "#e3e8ec"
_OURS = "#0b6e8f"
_PALETTE = (
    "#d1495b",
    "#e08e1b",
    "#3a9d5d",
    "#7a5aa6",
    "#8c5a3c",
    "#d66ba0",
    "#5c8a00",
    "#2f5fb3",
    "#b5a000",
    "#00a0a0",
    "#a03030",
    "#606c38",
)
_GREYS = ("#4a4f55", "#7b838b", "#a3abb2", "#5f6f7f", "#8f9aa5")
_MARKERS = ("s", "^", "D", "v", "P", "X", "<", ">", "p", "h", "*", "8")


@dataclass(frozen=True)
class Look:
    """How a method is drawn."""

    colour: str
    line: str
    marker: str
    width: float


def looks(methods: Iterable[tuple[str, bool]], order: Iterable[str]) -> dict[str, Look]:
    """A look for each (method, reference), given out in `order` (the table of methods), unknown ones after it.

    InduceKV is one strong colour, its ablations that colour dashed; references are grey and dotted; others have a
    colour and a marker each.
    """
    known = dict(methods)
    places = {name: place for place, name in enumerate(order)}
    found: dict[str, Look] = {}
    contenders = references = ablations = 0
    for name in sorted(known, key=lambda name: (places.get(name, len(places)), name)):
        if name == "inducekv":
            found[name] = Look(_OURS, "-", "o", 2.6)
        elif name.startswith("inducekv/"):
            shade = _PALETTE[ablations % len(_PALETTE)]
            found[name] = Look(shade, "--", _MARKERS[ablations % len(_MARKERS)], 1.4)
            ablations += 1
        elif known[name]:
            found[name] = Look(_GREYS[references % len(_GREYS)], ":", _MARKERS[-1 - references % len(_MARKERS)], 1.5)
            references += 1
        else:
            shade = _PALETTE[contenders % len(_PALETTE)]
            found[name] = Look(shade, "-", _MARKERS[contenders % len(_MARKERS)], 1.5)
            contenders += 1
    return found
