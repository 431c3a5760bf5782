"""The bench's report: `index.html` whole in itself, `report.md` with pictures beside it, and the tables as CSV."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template

import pandas as pd

from inducekv.atomic import write_atomically
from inducekv.bytes import format_bytes
from inducekv.continual.methods import METHODS
from inducekv.continual.report import pictures, tables
from inducekv.continual.report.questions import ShownQuestion, questions_html, shown_questions
from inducekv.continual.report.style import Look, looks
from inducekv.continual.results import Result, ResultError, group, safe_path
from inducekv.progress import SILENT, Progress

_HERE = Path(__file__).parent
_PAGE = Template((_HERE / "bench.html").read_text(encoding="utf-8"))
_STYLE = (_HERE / "page.css").read_text(encoding="utf-8")

_CAPTIONS = {
    "accuracy-so-far": (
        "Accuracy against tasks seen",
        "Mean accuracy on all tasks so far, after each task. Bands: standard error over seeds.",
    ),
    "forgetting": (
        "Forgetting curves",
        "What became of a task's accuracy 0, 1, 2 ... tasks after it was learned, mean over tasks.",
    ),
    "accuracy-against-bytes": (
        "Accuracy against bytes",
        "Last against the bytes that were really deployed. A level line needs no bytes beyond the model. Grey steps: "
        "the best of the methods, without reference rows, at or below so many bytes.",
    ),
    "accuracy-matrices": (
        "Accuracy matrices",
        "Rows: after learning a task. Columns: accuracy on each task so far, in percent, mean over seeds. Beside the "
        "name: Last.",
    ),
}

_NOTE = (
    "Last: mean accuracy on all tasks after the last one (MFN, AP). ± seeds and ± questions: its standard errors "
    "over seeds, and over questions clustered by picture. Avg: mean over the stream of the accuracy on the tasks so "
    "far (MAA). Learned: accuracy right after learning a task (MFT). Forgetting: best earlier accuracy minus the "
    "final one (AF). BWT: final minus right after learning, over T - 1; the CSV also has it over T. FWT: accuracy "
    "on a task just before it is learned, minus zero-shot. Deployed: bytes needed to answer beyond the model; "
    "training: bytes carried between tasks only to learn more. Seconds: wall-clock of learning the stream, and of "
    "answering every test question once. Ablations and reference rows stand apart; references copy labels, see task "
    "labels, keep all examples or put examples into the prompt. Behind by: the paired bootstrap over pictures of "
    "InduceKV's Last (or else the first method's) minus this one's, with its 95 % interval. Peak memory and the "
    "weighted figures are in the CSV."
)


def write_bench_report(
    folder: Path, results: Sequence[Result], *, root: Path | None = None, progress: Progress = SILENT
) -> Path:
    """Writes the report into a folder and returns the page's path.

    Args:
        results: of any streams, methods, budgets and seeds.
        root: of the streams' data, to show questions of streams that are not generated.

    Raises:
        ResultError: no results.
        ModuleNotFoundError: matplotlib or pandas is not installed (extra `bench`).
        OSError: the folder cannot be written.
    """
    if not results:
        raise ResultError("no results to report")
    folder.mkdir(parents=True, exist_ok=True)
    drawn = looks(((result.method, result.reference) for result in results), METHODS)
    board, compared = tables.leaderboard(results), tables.comparisons(results)
    for name, table in (("runs", tables.runs(results)), ("leaderboard", board), ("comparisons", compared)):
        write_atomically(folder / f"{name}.csv", table.round(4).to_csv(index=False).encode())
    streams = {key[0]: found for key, found in group(results, "stream").items()}
    sections, markdown = [], ["# Continual learning at equal bytes", "", _facts(results), "", _NOTE, ""]
    progress.start("drawing the report", len(streams))
    for stream, found in streams.items():
        images = _pictures(found, drawn)
        asked = shown_questions(found, root)
        sections.append(_section(stream, found, board, compared, images, asked, drawn))
        markdown += _markdown(folder, stream, found, board, compared, images)
        progress.advance()
    progress.stop()
    contents = "".join(f'<a href="#{_anchor(stream)}">{html.escape(stream)}</a>' for stream in streams)
    page = _PAGE.substitute(
        style=_STYLE,
        facts=html.escape(_facts(results)),
        contents=contents,
        overview=_overview(board) if len(streams) > 1 else "",
        note=html.escape(_NOTE),
        sections="".join(sections),
        versions=html.escape(_versions(results)),
    )
    write_atomically(folder / "report.md", ("\n".join(markdown) + "\n").encode())
    write_atomically(folder / "index.html", page.encode())
    return folder / "index.html"


def _pictures(found: Sequence[Result], drawn: Mapping[str, Look]) -> dict[str, bytes]:
    """PNG by name; of the main budget where a picture shows one.

    Ablations only have heat maps and rows, and a line along the bytes if they were run at several budgets.
    """
    full = [result for result in found if result.budget == tables.main_budget(found)]
    lines = [result for result in full if "/" not in result.method] or full
    images = {
        "accuracy-so-far": pictures.accuracy_so_far(lines, dict(drawn)),
        "forgetting": pictures.forgetting_curves(lines, dict(drawn)),
        "accuracy-against-bytes": pictures.accuracy_against_bytes(_along_bytes(found), dict(drawn)),
        "accuracy-matrices": pictures.heat_maps(full),
    }
    return images if len(found[0].tasks) > 1 else {name: images[name] for name in ("accuracy-against-bytes",)}


def _along_bytes(found: Sequence[Result]) -> list[Result]:
    """Without ablations that were run at a single budget, unless there is nothing else."""
    swept = {method for (method,), runs in group(found, "method").items() if len(group(runs, "budget")) > 1}
    return [each for each in found if "/" not in each.method or each.method in swept] or list(found)


def _section(
    stream: str,
    found: Sequence[Result],
    board: pd.DataFrame,
    compared: pd.DataFrame,
    images: Mapping[str, bytes],
    asked: Sequence[ShownQuestion],
    drawn: Mapping[str, Look],
) -> str:
    main = tables.main_budget(found)
    shown = {budget: _rows(board, compared, stream, budget) for budget in sorted({result.budget for result in found})}
    parts = [f'<section id="{_anchor(stream)}"><h2>{html.escape(stream)}</h2>']
    parts.append(f"<h3>Leaderboard at {format_bytes(main)}</h3>{_table(shown.pop(main), drawn)}")
    for budget, rows in shown.items():
        parts.append(f"<details><summary>at {format_bytes(budget)}</summary>{_table(rows, drawn)}</details>")
    numbered = f" Tasks: {', '.join(f'{place} {task}' for place, task in enumerate(found[0].tasks, 1))}."
    for name, image in images.items():
        title, caption = _CAPTIONS[name]
        at = "" if name == "accuracy-against-bytes" else f" At {format_bytes(main)}."
        where = at + (numbered if name == "accuracy-matrices" else "")
        parts.append(f'<h3>{title}</h3><p class="note">{html.escape(caption + where)}</p>')
        source = "data:image/png;base64," + base64.b64encode(image).decode("ascii")
        parts.append(f'<figure><img class="plot" alt="{html.escape(title)}" src="{source}"></figure>')
    if asked:
        parts.append(f"<h3>What the methods said</h3>{questions_html(asked)}")
    return "".join([*parts, "</section>"])


_HEADINGS = (
    "method",
    "Last, %",
    "± seeds",
    "± questions",
    "behind by",
    "Avg",
    "learned",
    "forgetting",
    "BWT",
    "FWT",
    "deployed",
    "training",
    "learn s",
    "answer s",
)


_KINDS = ("", "ablation", "reference")


def _rows(board: pd.DataFrame, compared: pd.DataFrame, stream: str, budget: int) -> list[tuple[str, str, list[str]]]:
    """Method, kind of row, and its cells as text."""
    here = board[(board["stream"] == stream) & (board["budget"] == budget)]
    against = compared[(compared["stream"] == stream) & (compared["budget"] == budget)].set_index("method")
    rows = []
    for row in here.to_dict("records"):
        behind = ""
        if row["method"] in against.index:
            other = against.loc[row["method"]]
            behind = f"{other['difference']:.1f} [{other['low']:.1f}, {other['high']:.1f}]"
        cells = [
            str(row["title"]),
            *(_number(row[name]) for name in ("last", "error_of_seeds", "error_of_questions")),
            behind,
            *(_number(row[name]) for name in ("avg", "mft", "forgetting", "bwt", "fwt")),
            *(format_bytes(int(row[name])) for name in ("deployed_bytes", "training_bytes")),
            *(_number(row[name]) for name in ("learn_seconds", "answer_seconds")),
        ]
        kind = "ours" if row["method"] == tables.OURS else _KINDS[row["part"]]
        rows.append((str(row["method"]), kind, cells))
    return rows


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.1f}".replace("-0.0", "0.0")


def _table(rows: Sequence[tuple[str, str, list[str]]], drawn: Mapping[str, Look]) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in _HEADINGS)
    body = []
    for name, kind, cells in rows:
        spot = f'<i class="spot" style="background:{drawn[name].colour}"></i>'
        texts = [html.escape(cell) for cell in cells]
        body.append(f'<tr class="{kind}">' + "".join(f"<td>{t}</td>" for t in [spot + texts[0], *texts[1:]]) + "</tr>")
    return _board(head, body)


def _overview(board: pd.DataFrame) -> str:
    """Last of every method on every stream at each stream's main budget."""
    wide = _wide(board)
    head = "".join(f"<th>{html.escape(str(name))}</th>" for name in ("method", *wide.columns))
    body = []
    for (part, method, title), row in wide.iterrows():
        kind = "ours" if method == tables.OURS else _KINDS[part]
        cells = "".join(f"<td>{_number(value)}</td>" for value in row)
        body.append(f'<tr class="{kind}"><td>{html.escape(str(title))}</td>{cells}</tr>')
    return "<h2>Last on every stream</h2>" + _board(head, body)


def _board(head: str, body: Sequence[str]) -> str:
    rows = "".join(body)
    return f'<div class="scroll"><table class="board"><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>'


def _wide(board: pd.DataFrame) -> pd.DataFrame:
    sizes = board.groupby(["stream", "budget"])["method"].nunique().reset_index()
    main = sizes.sort_values(["method", "budget"], ascending=[False, True]).drop_duplicates("stream")
    at_main = board.merge(main[["stream", "budget"]], on=["stream", "budget"])
    wide = at_main.pivot_table(index=["part", "method", "title"], columns="stream", values="last", sort=False)
    wide["mean"] = wide.mean(axis=1, skipna=False)
    order = wide.assign(_place=-wide["mean"].fillna(-1)).reset_index().sort_values(["part", "_place"]).index
    return wide.iloc[order]


def _markdown(
    folder: Path,
    stream: str,
    found: Sequence[Result],
    board: pd.DataFrame,
    compared: pd.DataFrame,
    images: Mapping[str, bytes],
) -> list[str]:
    place = Path("pictures") / safe_path(stream)
    (folder / place).mkdir(parents=True, exist_ok=True)
    lines = [f"## {markdown_text(stream)}", ""]
    for budget in sorted({result.budget for result in found}):
        lines += [f"### Leaderboard at {format_bytes(budget)}", ""]
        lines += ["| " + " | ".join(_HEADINGS) + " |", "|---" + "|---:" * (len(_HEADINGS) - 1) + "|"]
        rows = _rows(board, compared, stream, budget)
        for _, kind, cells in rows:
            texts = [markdown_text(cell) for cell in cells]
            around = {"ours": "**", "reference": "*"}.get(kind, "")
            lines.append("| " + " | ".join([f"{around}{texts[0]}{around}", *texts[1:]]) + " |")
        lines.append("")
    for name, image in images.items():
        write_atomically(folder / place / f"{name}.png", image)
        title, caption = _CAPTIONS[name]
        lines += [f"### {title}", "", caption, "", f"![{title}]({(place / name).as_posix()}.png)", ""]
    return lines


def markdown_text(text: str) -> str:
    """Text that Markdown takes as it is, on one line."""
    text = html.escape(" ".join(text.split()), quote=False)
    return "".join(f"\\{character}" if character in "\\`*_[]|#!~" else character for character in text)


def _facts(results: Sequence[Result]) -> str:
    seeds = sorted({result.seed for result in results})
    budgets = sorted({result.budget for result in results})
    return (
        f"{len(results)} runs: {len({r.stream for r in results})} streams, {len({r.method for r in results})} methods, "
        f"budgets {', '.join(map(format_bytes, budgets))}, seeds {', '.join(map(str, seeds))}. "
        f"Backbone: {', '.join(sorted({str(r.settings.get('model', '?')) for r in results}))}."
    )


def _versions(results: Sequence[Result]) -> str:
    found: dict[str, set[str]] = {}
    for result in results:
        for name, value in result.versions.items():
            if value is not None and name != "changed":
                found.setdefault(name, set()).add(str(value)[:40])
    return "; ".join(f"{name} {', '.join(sorted(values))}" for name, values in found.items())


def _anchor(stream: str) -> str:
    return html.escape(stream.replace(" ", "-").replace("/", "-"), quote=True)
