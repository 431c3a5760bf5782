"""The pictures of the page on injection, for light and for dark pages.

python tools/docs/draw_injection.py     # writes docs/assets/injection-{light,dark}.svg
"""

from dataclasses import dataclass
from pathlib import Path

import matplotlib

matplotlib.use("svg")
import matplotlib.pyplot as plt
from matplotlib.axes import Axes
from matplotlib.patches import FancyArrowPatch, FancyBboxPatch, Rectangle

OUT = Path(__file__).parents[2] / "docs" / "assets"
LAYERS, KEY_LAYER = 5, 2
ENTRIES = (3, 3, 3)
"""Memory tokens of each entry, the farthest first."""
PICTURE, QUESTION, ANSWER = 3, 4, 2
CELL = 0.86
GAP = 0.7
"""Between the layers that read the prompt alone and those that read memory too."""


@dataclass(frozen=True)
class Scheme:
    name: str
    ink: str
    faint: str
    quiet: str
    picture: str
    question: str
    answer: str
    entries: tuple[str, ...]
    key: str


LIGHT = Scheme(
    "light",
    "#212529",
    "#5f6b76",
    "#e3e7eb",
    "#9db4c8",
    "#c3d0db",
    "#7fb8a4",
    ("#f3c6a5", "#ee9f6e", "#e2722e"),
    "#b3470b",
)
DARK = Scheme(
    "dark",
    "#e6e8ee",
    "#a3abb8",
    "#3a4150",
    "#5f7e9c",
    "#475a70",
    "#3f8f78",
    ("#7a4a2a", "#b0652f", "#ee8a45"),
    "#ffab73",
)


def cell(axes: Axes, x: float, y: float, colour: str) -> None:
    inset = (1 - CELL) / 2
    axes.add_patch(Rectangle((x + inset, y + inset), CELL, CELL, facecolor=colour, edgecolor="none"))


def arrow(axes: Axes, start: tuple[float, float], end: tuple[float, float], colour: str, bend: float = 0.0) -> None:
    style = f"arc3,rad={bend}"
    axes.add_patch(
        FancyArrowPatch(start, end, arrowstyle="-|>", mutation_scale=11, lw=1.5, color=colour, connectionstyle=style)
    )


def entry_colours(scheme: Scheme) -> list[str]:
    """The colour of every memory token."""
    return [scheme.entries[entry] for entry, tokens in enumerate(ENTRIES) for _ in range(tokens)]


def own_colour(scheme: Scheme, place: int) -> str:
    if place < PICTURE:
        return scheme.picture
    return scheme.question if place < PICTURE + QUESTION else scheme.answer


def the_pass(axes: Axes, scheme: Scheme) -> None:
    """Layers upwards, positions to the right: where keys and values are, and where the retrieval key is taken."""
    memory, prompt = sum(ENTRIES), PICTURE + QUESTION
    total, top = prompt + ANSWER, LAYERS + GAP
    for layer in range(LAYERS):
        y = layer + GAP * (layer >= KEY_LAYER)
        for place in range(total):
            cell(axes, place, y, own_colour(scheme, place))
        if layer >= KEY_LAYER:
            for place, colour in enumerate(entry_colours(scheme)):
                cell(axes, place - memory, y, colour)
        axes.text(total + 0.3, y + 0.5, f"layer {layer}", va="center", fontsize=9, color=scheme.faint)
    axes.plot([0, 0], [-0.1, top + 0.1], color=scheme.ink, lw=1.2)
    _the_key(axes, scheme, memory, prompt)
    groups = [
        (-memory / 2, "retrieved entries, the best one last"),
        (PICTURE / 2, "picture"),
        (PICTURE + QUESTION / 2, "question"),
        (prompt + ANSWER / 2, "answer"),
    ]
    for x, text in groups:
        axes.text(x, top + 0.75, text, ha="center", va="bottom", fontsize=9.5, color=scheme.ink)
    for x, text in ((-memory, "−P"), (-1, "−1"), (0, "0"), (prompt - 1, "T−1"), (prompt, "T")):
        axes.text(x + 0.5, top + 0.12, text, ha="center", va="bottom", fontsize=8.5, color=scheme.faint)
    axes.text(-memory - 0.2, top + 0.12, "position", ha="right", va="bottom", fontsize=8.5, color=scheme.faint)
    axes.set(xlim=(-memory - 2.2, total + 2), ylim=(-0.45, top + 1.5), aspect="equal")
    axes.axis("off")


def _the_key(axes: Axes, scheme: Scheme, memory: int, prompt: int) -> None:
    """From the input of the key layer to the memory file, which stands where lower layers have no payloads."""
    left, low, wide, high = -memory + 0.1, -0.1, 5.4, 1.5
    axes.add_patch(
        FancyBboxPatch(
            (left, low), wide, high, boxstyle="round,pad=0,rounding_size=0.2", fc="none", ec=scheme.key, lw=1.4
        )
    )
    text = "memory file\nkeys $r_1 \\ldots r_n$"
    axes.text(left + wide / 2, low + high / 2, text, ha="center", va="center", fontsize=9.5, color=scheme.ink)
    y = KEY_LAYER + GAP / 2
    bend = left + wide + 1.3
    axes.plot(prompt - 0.5, y, "o", color=scheme.key, ms=7, zorder=5)
    axes.plot([prompt - 0.5, bend], [y, y], color=scheme.key, lw=1.6, zorder=4)
    arrow(axes, (bend + 0.02, y), (left + wide + 0.02, low + high / 2), scheme.key, 0.32)
    axes.text(bend + 0.35, y - 0.28, "key r(x)", va="top", fontsize=9.5, color=scheme.key)
    arrow(axes, (left + wide / 2, low + high), (left + wide / 2, KEY_LAYER + GAP + 0.06), scheme.key)
    axes.text(left + wide / 2 + 0.3, (low + high + y) / 2 + 0.2, "top-k", va="center", fontsize=9.5, color=scheme.key)


def the_mask(axes: Axes, scheme: Scheme) -> None:
    """One reading layer: queries downwards, keys to the right."""
    memory, total = sum(ENTRIES), PICTURE + QUESTION + ANSWER
    for query in range(total):
        y = total - 1 - query
        for place, colour in enumerate(entry_colours(scheme)):
            cell(axes, place - memory, y, colour)
        for place in range(total):
            cell(axes, place, y, own_colour(scheme, place) if place <= query else scheme.quiet)
    axes.plot([0, 0], [-0.2, total + 0.2], color=scheme.ink, lw=1.2)
    axes.text(-memory / 2, total + 0.3, "keys of the memory", ha="center", va="bottom", fontsize=9.5, color=scheme.ink)
    axes.text(total / 2, total + 0.3, "the prompt's own keys", ha="center", va="bottom", fontsize=9.5, color=scheme.ink)
    axes.text(
        -memory - 0.35, total / 2, "queries", ha="right", va="center", rotation=90, fontsize=9.5, color=scheme.ink
    )
    axes.text(
        (total - memory) / 2,
        -0.35,
        "every query sees the memory, + log(α / max α) on its logits;\nthe prompt stays causal",
        ha="center",
        va="top",
        fontsize=9.5,
        color=scheme.faint,
    )
    axes.set(xlim=(-memory - 1.6, total + 0.4), ylim=(-1.7, total + 1.2), aspect="equal")
    axes.axis("off")


def main() -> None:
    plt.rcParams.update({"font.family": "DejaVu Sans", "svg.fonttype": "path", "svg.hashsalt": "inducekv"})
    OUT.mkdir(exist_ok=True)
    for scheme in (LIGHT, DARK):
        for name, draw, size in (("pass", the_pass, (8.8, 3.9)), ("mask", the_mask, (6.2, 4.2))):
            figure, axes = plt.subplots(figsize=size)
            draw(axes, scheme)
            figure.savefig(
                OUT / f"{name}-{scheme.name}.svg",
                transparent=True,
                bbox_inches="tight",
                pad_inches=0.02,
                metadata={"Date": None},
            )
            plt.close(figure)


if __name__ == "__main__":
    main()
