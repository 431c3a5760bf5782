"""A stream's results as one self-contained HTML page (no script, no outside resource) and `results.json`."""

from __future__ import annotations

import base64
import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
from PIL import Image

from inducekv.bytes import format_bytes
from inducekv.continual.gallery import AnsweredQuestion, ShownSource
from inducekv.continual.runner import MethodResult

_STYLE = (Path(__file__).parent / "page.css").read_text(encoding="utf-8")

_PAGE = Template((Path(__file__).parent / "demo.html").read_text(encoding="utf-8"))

_PICTURES = "The pictures of the entries are shown from the training data: the memory itself holds none."


def results_object(seed: int, budget: int, tasks: Sequence[str], results: Sequence[MethodResult]) -> dict[str, Any]:
    """The figures of a run: `seed`, `budget_bytes`, `tasks`, and `methods` by name with their matrix, Avg, Last, ..."""
    return {
        "seed": seed,
        "budget_bytes": budget,
        "tasks": list(tasks),
        "methods": {result.name: result.to_dict() for result in results},
    }


def write_report(
    folder: Path,
    figures: dict[str, Any],
    results: Sequence[MethodResult],
    answered: Sequence[AnsweredQuestion],
    *,
    title: str,
    when: str,
    questions: int,
    graded: str = "Exact match; an empty answer is wrong.",
) -> Path:
    """Writes `index.html`, `results.json` and `accuracy-matrices.png` into `folder`; returns the page's path.

    `graded`: how answers were scored, in a sentence or two.

    Raises:
        ModuleNotFoundError: matplotlib is not installed (extra `bench`).
        OSError: the folder cannot be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tasks = figures["tasks"]
    budget = format_bytes(figures["budget_bytes"])
    induced = next(result for result in results if result.name == "inducekv")
    (folder / "accuracy-matrices.png").write_bytes(_heat_maps(tasks, results, "png"))
    page = _PAGE.substitute(
        title=html.escape(title),
        style=_STYLE,
        when=html.escape(when),
        lead=html.escape(_lead(tasks, budget)),
        cards="".join(_card(result) for result in results),
        table=_table(results),
        heatmaps=_svg(_heat_maps(tasks, results, "svg")),
        gallery=_gallery(tasks, answered),
        budget=budget,
        used=format_bytes(induced.deployed_bytes),
        questions=questions,
        graded=html.escape(graded),
        pictures=_PICTURES if any(item.images for item in answered) else "",
        seed=figures["seed"],
    )
    _write(folder / "results.json", json.dumps(figures, indent=2, ensure_ascii=False) + "\n")
    _write(folder / "index.html", page)
    return folder / "index.html"


def _write(path: Path, text: str) -> None:
    draft = path.with_name(path.name + ".part")
    draft.write_text(text, encoding="utf-8")
    draft.replace(path)


def _lead(tasks: Sequence[str], budget: str) -> str:
    return (
        f"{len(tasks)} tasks the model had never seen, learned one after another into one memory of {budget}. "
        "No weight was changed; every answer names the examples it was read from."
    )


def _card(result: MethodResult) -> str:
    last = result.to_dict()["last"]
    kind = "card ours" if result.name == "inducekv" else "card"
    bar = f'<span class="bar"><span style="width:{last:.1f}%"></span></span>'
    figure = f'<b>{last:.1f}</b><span class="unit"> % Last</span>{bar}'
    return f'<div class="{kind}">{figure}<p>{html.escape(result.title)}</p></div>'


def _table(results: Sequence[MethodResult]) -> str:
    names = ("method", "Avg", "Last", "forgetting", "bytes", "learn s", "answer s")
    head = "".join(f"<th>{name}</th>" for name in names)
    rows = []
    for result in results:
        figures = result.to_dict()
        cells = [
            html.escape(result.title),
            f"{figures['avg']:.1f}",
            f"{figures['last']:.1f}",
            f"{figures['forgetting']:.1f}",
            f"{result.deployed_bytes:,}",
            f"{result.learn_seconds:.1f}",
            f"{result.answer_seconds:.1f}",
        ]
        ours = ' class="ours"' if result.name == "inducekv" else ""
        rows.append(f"<tr{ours}>" + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>")
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(rows)}</tbody></table></div>'


def _heat_maps(tasks: Sequence[str], results: Sequence[MethodResult], form: str) -> bytes:
    """One heat map a method, side by side on one scale, as SVG or PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    columns = 2 if len(results) > 1 else 1
    rows = -(-len(results) // columns)
    size = 1.6 + 0.62 * len(tasks)
    figure = Figure(figsize=(columns * (size + 1.0), rows * size), layout="constrained")
    FigureCanvasAgg(figure)
    grid = np.atleast_1d(figure.subplots(rows, columns, squeeze=False)).ravel()
    for axes, result in zip(grid, results, strict=False):
        shade = axes.imshow(result.matrix, vmin=0, vmax=100, cmap="YlGnBu")
        for after, on in zip(*np.tril_indices(len(tasks)), strict=True):
            value = result.matrix[after, on]
            axes.text(
                on,
                after,
                f"{value:.0f}",
                ha="center",
                va="center",
                fontsize=9,
                color="white" if value > 55 else "#22313f",
            )
        axes.set_title(result.title, fontsize=11, loc="left", fontweight="bold", color="#22313f")
        axes.set_xticks(range(len(tasks)), tasks, rotation=35, ha="right", fontsize=8)
        axes.set_yticks(range(len(tasks)), [f"after {task}" for task in tasks], fontsize=8)
        axes.tick_params(length=0)
        axes.spines[:].set_visible(False)
    for axes in grid[len(results) :]:
        axes.set_visible(False)
    bar = figure.colorbar(shade, ax=list(grid), shrink=0.6, pad=0.02)
    bar.set_label("accuracy, %", fontsize=9)
    bar.outline.set_visible(False)
    file = io.BytesIO()
    figure.savefig(file, format=form, dpi=160, metadata={"Date": None} if form == "svg" else None)
    return file.getvalue()


def _svg(document: bytes) -> str:
    """The <svg> element without the XML prologue (which names an outside DTD)."""
    text = document.decode("utf-8")
    return text[text.index("<svg") :]


def _gallery(tasks: Sequence[str], answered: Sequence[AnsweredQuestion]) -> str:
    parts = []
    for task in tasks:
        cards = "".join(_answer(item) for item in answered if item.task == task)
        parts.append(f'<h3>{html.escape(task)}</h3><div class="answers">{cards}</div>')
    return "".join(parts)


def _answer(item: AnsweredQuestion) -> str:
    verdict = ("right", "✓") if item.right else ("wrong", "✗")
    expected = "" if item.right else f'<span class="expected">expected {html.escape(item.expected)}</span>'
    sources = "".join(map(_source, item.sources)) or '<p class="note">No entry was near enough.</p>'
    asked = (
        f'<p class="question">{html.escape(item.question)}</p>'
        f'<p class="said {verdict[0]}"><span>{verdict[1]}</span> {html.escape(item.said) or "(empty)"}</p>{expected}'
    )
    return (
        f'<article><div class="asked">{picture_tags(item.images, 104)}<div>{asked}</div></div>'
        f'<div class="sources">{sources}</div></article>'
    )


def _source(source: ShownSource) -> str:
    name = source.id if len(source.id) <= 10 else source.id[:8] + "…"
    told = f"{source.question} — {source.answer} (entry {source.id}, task {source.task})"
    return (
        f'<div class="source" title="{html.escape(told, quote=True)}">{picture_tags(source.images, 56)}'
        f'<p class="name">{html.escape(source.answer)}</p><p>α {source.alpha:.2f}<br>mass {source.mass:.2f}</p>'
        f'<p class="id">{html.escape(source.task)}<br>{html.escape(name)}</p></div>'
    )


def picture_tags(images: Sequence[Image.Image], width: int) -> str:
    return "".join(f'<img width="{width}" alt="" src="{_data_url(image)}">' for image in images)


def _data_url(image: Image.Image) -> str:
    small = image.copy()
    small.thumbnail((256, 256))
    file = io.BytesIO()
    small.save(file, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")
