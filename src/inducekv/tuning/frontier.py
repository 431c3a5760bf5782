"""The frontier: points that no other one beats with entries as small; as a list, and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from inducekv.bytes import format_bytes
from inducekv.continual.report.style import GRID, INK, SOFT
from inducekv.tuning.measure import Measured
from inducekv.tuning.space import spans

if TYPE_CHECKING:
    from inducekv.tuning.tuner import TuneReport

COLOURS = {"int2": "#a11d33", "int3": "#e0732a", "int4": "#d9b23a", "int8": "#3b82a0", "float16": "#374151"}
MARKERS = {"keep_answer": "o", "mean_pool": "D", "shift_kv": "^"}


def frontier_of(measured: Sequence[Measured]) -> list[Measured]:
    """Points for which no other has a higher worth with entries no larger; smallest entries first."""
    frontier: list[Measured] = []
    for found in sorted(measured, key=lambda found: (found.entry_nbytes, -found.worth)):
        if not frontier or found.worth > frontier[-1].worth:
            frontier.append(found)
    return frontier


def rows_of(report: TuneReport) -> list[list[str]]:
    """The measured points as rows of text, best first: mark, payload, keys, layers, bytes, entries, percent, nats.

    The chosen point is marked `>`, others on the frontier `*`.
    """
    frontier = {found.point for found in frontier_of(report.measured)}
    rows = []
    for found in sorted(report.measured, key=lambda found: (-found.worth, found.entry_nbytes)):
        point = found.point
        mark = ">" if point == report.chosen.point else "*" if point in frontier else ""
        stored = [f"{point.payload} {point.payload_tokens}", point.payload_dtype, point.key_dtype]
        numbers = [f"{found.entry_nbytes:,.0f}", str(found.entries), f"{found.accuracy:.1f}", f"{found.mean_nll:.2f}"]
        rows.append([mark, *stored, spans(point.payload_layers), *numbers])
    return rows


def picture(report: TuneReport, file: str | Path) -> None:
    """Draws accuracy over bytes an entry, every measured point and the frontier, as PNG or SVG by the file's name.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (extra `bench`).
        ValueError: the file's name has another ending.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import LogLocator

    form = checked_form(file)
    figure = Figure(figsize=(7.2, 4.4), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    for found in report.measured:
        colour = COLOURS[found.point.payload_dtype]
        look: dict[str, Any] = {
            "marker": MARKERS[found.point.payload],
            "color": colour,
            "edgecolors": "white",
            "s": 64,
            "zorder": 3,
        }
        axes.scatter(found.entry_nbytes, found.accuracy or 0.0, **look)
    frontier = frontier_of(report.measured)
    x, y = [found.entry_nbytes for found in frontier], [found.accuracy or 0.0 for found in frontier]
    axes.plot(x, y, color=SOFT, linewidth=1.2, zorder=2)
    chosen = report.chosen
    ring: dict[str, Any] = {"s": 240, "facecolors": "none", "edgecolors": INK, "linewidths": 1.4, "zorder": 4}
    axes.scatter(chosen.entry_nbytes, chosen.accuracy or 0.0, **ring)
    axes.set_xscale("log", base=2)
    axes.xaxis.set_major_locator(LogLocator(base=2, subs=(1.0, 1.5)))
    axes.xaxis.set_major_formatter(lambda value, _: format_bytes(round(value)))
    axes.set_xlabel("bytes an entry", color=SOFT)
    axes.set_ylabel(f"accuracy on {report.questions} held-out questions, %", color=SOFT)
    axes.set_title(
        f"{format_bytes(report.budget)}, {report.tasks} task{'s' * (report.tasks != 1)}: chosen {chosen.point.label}",
        fontsize=10,
        color=INK,
        loc="left",
    )
    for name in dict.fromkeys(found.point.payload for found in report.measured):
        axes.scatter([], [], marker=MARKERS[name], color=SOFT, label=name)
    for dtype in [dtype for dtype in COLOURS if any(found.point.payload_dtype == dtype for found in report.measured)]:
        axes.scatter([], [], marker="s", color=COLOURS[dtype], label=dtype)
    axes.plot([], [], color=SOFT, linewidth=1.2, label="frontier")
    figure.legend(loc="outside right upper", frameon=False, fontsize=9, labelcolor=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file, format=form, dpi=140, metadata={"Date": None} if form == "svg" else {"Software": None})


def checked_form(file: str | Path) -> str:
    """`png` or `svg`, from the ending of a picture's name.

    Raises:
        ValueError: it is neither.
    """
    form = Path(file).suffix.lower().removeprefix(".")
    if form not in ("png", "svg"):
        raise ValueError(f"a picture's name must end in .png or .svg, got {str(file)!r}")
    return form
