"""Tables of the bench: its streams and methods as the code lists them, and the kept results."""

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from inducekv.bytes import format_bytes
from inducekv.continual.methods import METHODS
from inducekv.continual.methods.trained import TrainedMethod
from inducekv.continual.report import tables
from inducekv.continual.report.bench import markdown_text
from inducekv.continual.results import WORK, Result, budget_name, group, read_results
from inducekv.continual.streams import STREAMS

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
KNOBS = ("strength", "temperature", "pull", "most")
"""Numbers of a trained method, beside its recipe, that a reader would want to know."""
ENOUGH_SEEDS = 3
"""Below this, a page says that a table shows single runs."""


def streams() -> str:
    """A row for every stream."""
    lines = ["| stream | what it is | data | tasks | protocol |", "|---|---|---|--:|---|"]
    for name, kind in STREAMS.items():
        data = "`--root`" if kind.needs_root else "generated"
        count = str(len(kind.tasks)) if kind.tasks else "those of the folder"
        lines.append(f"| `{name}` | {_cell(kind.summary)} | {data} | {count} | {_cell(kind.protocol)} |")
    return "\n".join(lines)


def methods() -> str:
    """A row for every method: contenders, then ablations, then reference rows."""
    parts = []
    for part, heading in enumerate(("Methods", "Ablations of InduceKV", "Reference rows")):
        lines = [f"**{heading}**\n", "| name | title | what it is | needs |", "|---|---|---|---|"]
        for name, kind in METHODS.items():
            if tables.part_of(name, kind.reference) == part:
                needs = ", ".join(
                    filter(
                        None,
                        (
                            f"`{kind.needs}`" if kind.needs else "",
                            f"memory of `{kind.shares}`" if kind.shares else "",
                            "task labels" if kind.sees_task_labels else "",
                            "to be named: not in `all`" if kind.only_named else "",
                        ),
                    )
                )
                lines.append(f"| `{name}` | {_cell(kind.title)} | {_cell(kind.summary)} | {needs} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def recipes() -> str:
    """How every trained method is trained: its recipe, and what else was chosen for it."""
    lines = ["| name | passes | learning rate | batch | also |", "|---|--:|--:|--:|---|"]
    for name, kind in METHODS.items():
        method = kind.method
        if issubclass(method, TrainedMethod):
            recipe = method.recipe
            also = ", ".join(f"{knob} {getattr(method, knob):g}" for knob in KNOBS if hasattr(method, knob))
            lines.append(f"| `{name}` | {recipe.epochs} | {recipe.learning_rate:g} | {recipe.batch_size} | {also} |")
    return "\n".join(lines)


def results(folder: Path = RESULTS) -> str:
    """Leaderboards of the kept results, accuracy against bytes, and the commands that make them.

    Raises:
        ResultError: a file cannot be believed.
    """
    kept = folder.is_dir() and any(WORK not in p.relative_to(folder).parts for p in folder.rglob("*.json"))
    if not kept:
        words = f"There are no results in `{folder.name}` yet."
        return words + " Make some with `inducekv bench run` and build this page again."
    found = read_results(folder)
    board = tables.leaderboard(found)
    parts = [_facts(found)]
    for (stream,), here in group(sorted(found, key=lambda r: r.stream), "stream").items():
        rows = board[board["stream"] == stream]
        parts += [f"## {stream}", f"Tasks, in order: {', '.join(map(_cell, here[0].tasks))}."]
        for budget in sorted({result.budget for result in here}):
            at_budget = rows[rows["budget"] == budget]
            parts += [f"### {stream} at {format_bytes(budget)}", _caution(at_budget), _leaderboard(at_budget)]
        if rows["budget"].nunique() > 1:
            parts += [f"### {stream}: accuracy against bytes", _against_bytes(rows)]
        parts += ["Made with:", _commands(here)]
    return "\n\n".join(filter(None, parts))


def _facts(found: Sequence[Result]) -> str:
    commits = sorted({str(r.versions["commit"])[:10] for r in found if r.versions.get("commit")})
    changed = sum(bool(r.versions.get("changed")) for r in found)
    models = sorted({str(r.settings.get("model", "?")) for r in found})
    machines = sorted({str(r.versions.get("gpu") or r.versions.get("machine") or "?") for r in found})
    text = (
        f"{len(found)} results. Backbone: {', '.join(map(_cell, models))}. Run on: {', '.join(map(_cell, machines))}."
    )
    if commits:
        text += f" Commits of the project: {', '.join(f'`{c}`' for c in commits)}."
    if changed:
        text += f" {changed} of them were run with changes that the commit does not have."
    if len(commits) > 1:
        text += " Rows of different commits may not be comparable."
    return text


def _caution(rows: pd.DataFrame) -> str:
    fewest, most = int(rows["seeds"].min()), int(rows["seeds"].max())
    if most < ENOUGH_SEEDS:
        seeds = "one seed" if most == 1 else f"at most {most} seeds"
        return f"Only {seeds}: other seeds may rank the methods differently."
    if fewest < most:
        return f"Rows have {fewest} to {most} seeds; those with fewer were measured on other questions than the rest."
    return ""


def _leaderboard(rows: pd.DataFrame) -> str:
    lines = [
        "| method | seeds | Last | ± seeds | ± questions | Avg | MFT | AF | BWT | deployed | training | learn s |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows.to_dict("records"):
        around = "**" if row["method"] == tables.OURS else "*" if row["reference"] else ""
        figures = ("last", "error_of_seeds", "error_of_questions", "avg", "mft", "forgetting", "bwt")
        cells = [
            f"{around}{_cell(row['title'])}{around}",
            str(int(row["seeds"])),
            *(_number(row[name]) for name in figures),
            f"{int(row['deployed_bytes']):,}",
            f"{int(row['training_bytes']):,}",
            _number(row["learn_seconds"]),
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _against_bytes(rows: pd.DataFrame) -> str:
    budgets = sorted(rows["budget"].unique())
    lines = [
        "Last, and in brackets the bytes really deployed and the seeds.\n",
        "| method | " + " | ".join(format_bytes(int(b)) for b in budgets) + " |",
        "|---|" + "--:|" * len(budgets),
    ]
    for _, same in rows.sort_values("part", kind="stable").groupby("method", sort=False):
        if same["budget"].nunique() < 2:
            continue
        by_budget = {row["budget"]: row for row in same.to_dict("records")}
        cells = [
            f"{_number(row['last'])} ({format_bytes(int(row['deployed_bytes']))}; {int(row['seeds'])})" if row else ""
            for row in map(by_budget.get, budgets)
        ]
        lines.append(f"| {_cell(same['title'].iloc[0])} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _commands(found: Sequence[Result]) -> str:
    """The shortest list of commands that makes these results."""
    seeds_of: dict[tuple[object, ...], dict[str, list[int]]] = {}
    for result in found:
        key = (result.stream, result.budget, tuple(sorted(result.settings.items())))
        seeds_of.setdefault(key, {}).setdefault(result.method, []).append(result.seed)
    lines = []
    for (stream, budget, settings), by_method in seeds_of.items():
        together: dict[tuple[int, ...], list[str]] = {}
        for method, seeds in by_method.items():
            together.setdefault(tuple(sorted(seeds)), []).append(method)
        for seeds, names in together.items():
            said = dict(settings)  # type: ignore[call-overload]
            options = [
                f"--methods {','.join(name for name in METHODS if name in names)}",
                f"--budget {budget_name(int(str(budget)))}",
                f"--seeds {','.join(map(str, seeds))}",
                "--root FOLDER" if STREAMS[str(stream)].needs_root else "",
                f"--model {said['model']}" if said.get("model", "embedded") != "embedded" else "",
                f"--limit {said['limit']}" if said.get("limit") is not None else "",
                f"--max-new-tokens {said['max_new_tokens']}" if said.get("max_new_tokens", 32) != 32 else "",
                "" if said.get("ahead", True) else "--no-ahead",
            ]
            lines.append(" ".join(filter(None, (f"$ inducekv bench run {stream}", *options))))
    return "\n".join(["```text", *lines, "```"])


def _number(value: float) -> str:
    return "" if pd.isna(value) else f"{value:.1f}".replace("-0.0", "0.0") if abs(value) < 0.05 else f"{value:.1f}"


def _cell(text: object) -> str:
    return markdown_text(str(text))
