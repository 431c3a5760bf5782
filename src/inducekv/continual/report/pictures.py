"""The bench's pictures, drawn with matplotlib, as PNG bytes. Methods are in the order of their Last everywhere."""

import io
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from inducekv.bytes import format_bytes
from inducekv.continual.report.style import GRID, INK, SOFT, Look
from inducekv.continual.report.tables import part_of
from inducekv.continual.results import Result, group

DPI = 144
_MOST_TASKS_WITH_FIGURES = 12
_COLUMNS = 4


def heat_maps(results: Sequence[Result]) -> bytes:
    """The accuracy matrix of every method (mean over seeds) on one scale."""
    methods = by_last(results)
    tasks = next(iter(methods.values()))[0].tasks
    columns = min(_COLUMNS, len(methods))
    rows = -(-len(methods) // columns)
    figure = _figure(3.3 * columns + 1.4, 3.05 * rows + 1.1)
    grid = figure.subplots(rows, columns, squeeze=False, sharex=True, sharey=True).ravel()
    numbers = [str(place + 1) for place in range(len(tasks))]
    step = 1 if len(tasks) <= _MOST_TASKS_WITH_FIGURES else 4
    shade = None
    for axes, found in zip(grid, methods.values(), strict=False):
        matrix = np.mean([result.matrix for result in found], axis=0)
        matrix[np.triu_indices(len(tasks), 1)] = np.nan
        shade = axes.imshow(matrix, vmin=0, vmax=100, cmap="YlGnBu")
        if len(tasks) <= _MOST_TASKS_WITH_FIGURES:
            _write_cells(axes, matrix)
        axes.set_title(f"{_text(_short(found[0].title))}   {matrix[-1].mean():.1f}", fontsize=10, loc="left", color=INK)
        axes.set_xticks(range(0, len(tasks), step), numbers[::step], fontsize=8)
        axes.set_yticks(range(0, len(tasks), step), numbers[::step], fontsize=8)
        axes.tick_params(length=0, colors=SOFT)
        axes.spines[:].set_visible(False)
    for axes in grid[len(methods) :]:
        axes.set_visible(False)
    figure.supxlabel("accuracy on task", fontsize=10, color=SOFT)
    figure.supylabel("after learning task", fontsize=10, color=SOFT)
    bar = figure.colorbar(shade, ax=list(grid), shrink=min(1.0, 3.0 / (3.05 * rows)), aspect=18, pad=0.015)
    bar.set_label("accuracy, %", fontsize=9, color=SOFT)
    bar.outline.set_visible(False)
    bar.ax.tick_params(length=0, labelsize=8, colors=SOFT)
    return _png(figure)


def accuracy_so_far(results: Sequence[Result], looks: dict[str, Look]) -> bytes:
    """Mean accuracy on the tasks so far against the number of tasks seen; bands: standard error over seeds."""

    def curve(result: Result) -> Float[np.ndarray, "points"]:
        return np.array([row[: t + 1].mean() for t, row in enumerate(result.matrix)])

    return _curves(results, looks, curve, "tasks seen", "mean accuracy on them, %", first=1, floor=0.0)


def forgetting_curves(results: Sequence[Result], looks: dict[str, Look]) -> bytes:
    """What is left of a task's accuracy k tasks after it was learned: points against right after, mean over tasks."""

    def curve(result: Result) -> Float[np.ndarray, "points"]:
        diagonal = np.diag(result.matrix)
        return np.array(
            [_mean_of_asked(np.diag(result.matrix, -k) - diagonal[: len(diagonal) - k]) for k in range(len(diagonal))]
        )

    return _curves(results, looks, curve, "tasks learned since", "change of accuracy, points", first=0, floor=None)


def accuracy_against_bytes(results: Sequence[Result], looks: dict[str, Look]) -> bytes:
    """Last against deployed bytes, a line a method over its budgets; grey steps: the best at or below so many bytes."""
    methods = by_last(results)
    figure = _figure(9.6, 5.0)
    axes = figure.subplots()
    points = []
    for name, found in methods.items():
        look, budgets = looks[name], sorted(group(found, "budget").items())
        lasts = [[result.matrix[-1].mean() for result in runs] for _, runs in budgets]
        means, errors = [float(np.mean(each)) for each in lasts], [_sem(each) for each in lasts]
        sizes = [max(1.0, float(np.mean([result.deployed_bytes[-1] for result in runs]))) for _, runs in budgets]
        if max(sizes) <= 1:
            axes.axhline(
                float(np.mean(means)),
                color=look.colour,
                linestyle=look.line,
                linewidth=1.3,
                label=_text(found[0].title),
            )
            continue
        order = np.argsort(sizes)
        axes.errorbar(
            np.array(sizes)[order],
            np.array(means)[order],
            yerr=np.array(errors)[order],
            color=look.colour,
            linestyle=look.line,
            marker=look.marker,
            markersize=5.5,
            linewidth=look.width,
            elinewidth=0.9,
            label=_text(found[0].title),
            zorder=4 if name == "inducekv" else 3,
        )
        if not found[0].reference:
            points += list(zip(sizes, means, strict=True))
    axes.set_xscale("log", base=2)
    if len(points) > 1:
        front = _front(points)
        axes.step(
            *zip(*front, strict=True),
            where="post",
            color="#c3ccd4",
            linewidth=7,
            alpha=0.6,
            zorder=1,
            label="best so far",
        )
    low, high = axes.get_xlim()
    ticks = [2.0**power for power in range(int(np.ceil(np.log2(low))), int(np.floor(np.log2(high))) + 1)]
    step = -(-len(ticks) // 9) or 1
    axes.set_xticks(ticks[::step], [format_bytes(int(tick)) for tick in ticks[::step]])
    axes.minorticks_off()
    _dress(axes, "deployed bytes", "Last, %")
    _legend(figure, axes, [found[0].title for found in methods.values()])
    return _png(figure)


def by_last(results: Iterable[Result]) -> dict[str, list[Result]]:
    """Results of each method, contenders by their mean Last first, then ablations, then reference rows."""
    methods = {key[0]: found for key, found in group(results, "method").items()}

    def place(name: str) -> tuple[int, float, str]:
        found = methods[name]
        return part_of(name, found[0].reference), -float(np.mean([result.matrix[-1].mean() for result in found])), name

    return {name: methods[name] for name in sorted(methods, key=place)}


def _curves(
    results: Sequence[Result],
    looks: dict[str, Look],
    curve: Callable[[Result], Float[np.ndarray, "points"]],
    across: str,
    up: str,
    *,
    first: int,
    floor: float | None,
) -> bytes:
    figure = _figure(9.6, 4.6)
    axes = figure.subplots()
    for name, found in by_last(results).items():
        look = looks[name]
        curves = np.array([curve(result) for result in found])
        places = np.arange(first, first + curves.shape[1])
        mean = curves.mean(axis=0)
        axes.plot(
            places,
            mean,
            color=look.colour,
            linestyle=look.line,
            marker=look.marker if len(places) <= _MOST_TASKS_WITH_FIGURES else None,
            markersize=4.5,
            linewidth=look.width,
            label=_text(found[0].title),
            zorder=4 if name == "inducekv" else 3,
        )
        if len(curves) > 1:
            error = curves.std(axis=0, ddof=1) / np.sqrt(len(curves))
            axes.fill_between(places, mean - error, mean + error, color=look.colour, alpha=0.12, linewidth=0)
    axes.xaxis.get_major_locator().set_params(integer=True)
    if floor is not None:
        axes.set_ylim(bottom=floor)
    _dress(axes, across, up)
    _legend(figure, axes, [found[0].title for found in by_last(results).values()])
    return _png(figure)


def _front(points: Iterable[tuple[float, float]]) -> list[tuple[float, float]]:
    """The points that no other beats with as few bytes, by bytes."""
    front: list[tuple[float, float]] = []
    for size, last in sorted(points, key=lambda point: (point[0], -point[1])):
        if not front or last > front[-1][1]:
            front.append((size, last))
    return [*front, (max(size for size, _ in points), front[-1][1])]


def _mean_of_asked(values: Float[np.ndarray, "tasks"]) -> float:
    return float(values[~np.isnan(values)].mean()) if not np.isnan(values).all() else float("nan")


def _sem(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0


def _write_cells(axes: Any, matrix: Float[np.ndarray, "after on"]) -> None:
    for after, on in zip(*np.tril_indices(len(matrix)), strict=True):
        value = matrix[after, on]
        if np.isnan(value):  # not asked
            continue
        colour = "white" if value > 55 else INK
        axes.text(on, after, f"{value:.0f}", ha="center", va="center", fontsize=7, color=colour)


def _short(title: str, longest: int = 30) -> str:
    return title if len(title) <= longest else title[: longest - 1] + "…"


def _figure(width: float, height: float) -> Any:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    FigureCanvasAgg(figure)
    return figure


def _dress(axes: Any, across: str, up: str) -> None:
    axes.set_xlabel(across, fontsize=10, color=SOFT)
    axes.set_ylabel(up, fontsize=10, color=SOFT)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(length=0, labelsize=9, colors=SOFT)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(GRID)


def _legend(figure: Any, axes: Any, order: Iterable[str]) -> None:
    by_label = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    labels = [label for label in map(_text, order) if label in by_label]
    labels += [label for label in by_label if label not in labels]
    handles = [by_label[label] for label in labels]
    figure.legend(handles, labels, loc="outside right upper", frameon=False, fontsize=9, labelcolor=INK)


def _text(label: str) -> str:
    """A title as it is: no mathematics between dollar signs, no label hidden by an underscore."""
    return label.replace("$", r"\$").lstrip("_")


def _png(figure: Any) -> bytes:
    file = io.BytesIO()
    figure.savefig(file, format="png", dpi=DPI, metadata={"Software": None})
    return file.getvalue()
