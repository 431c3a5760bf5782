"""demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from inducekv.cli.common import JsonOption, QuietOption, SeedOption, helpful, out, print_json, require_extra
from inducekv.cli.waiting import loading, waits

if TYPE_CHECKING:
    from inducekv.continual.runner import MethodResult

SHOWN = ("zero_shot", "nearest_neighbour", "sequential_lora", "inducekv")


def register(app: typer.Typer) -> None:
    app.command()(helpful(demo))


@waits()
def demo(
    budget: Annotated[str, typer.Option(help="Bytes that each method may keep.")] = "256KiB",
    report: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("demo-report"),
    write_data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Only write the drawn tasks there, as data for the other commands."),
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Teach the model that ships with the package a stream of tasks it never saw, and compare; about three minutes."""
    if write_data is not None:
        _write(write_data, seed, as_json, quiet)
        return
    for module in ("peft", "matplotlib", "sklearn"):
        require_extra(module)
    loading("torch", "transformers")
    from inducekv import Backbone
    from inducekv.bytes import format_bytes, parse_bytes
    from inducekv.continual.demo import methods_of_demo, stream_of_demo
    from inducekv.continual.gallery import gallery
    from inducekv.continual.report import results_object, write_report
    from inducekv.continual.runner import run
    from inducekv.embedded import path
    from inducekv.progress import console_progress

    limit = parse_bytes(budget)
    progress = console_progress(quiet)
    stream = stream_of_demo(seed)
    methods, model = methods_of_demo(Backbone.from_pretrained(path()), limit, seed)

    def place(result: MethodResult) -> int:
        return SHOWN.index(result.name)

    console = out()
    talk = not (quiet or as_json)
    if talk:
        console.print(f"{len(stream)} tasks, one after another, {format_bytes(limit)} for each method\n", style="bold")

    def after_task(number: int, results: Sequence[MethodResult]) -> None:
        if talk:
            console.print(_so_far(stream.tasks, number, sorted(results, key=place)), "")

    results = sorted(run(stream, methods, progress, after_task), key=place)
    figures = results_object(seed, limit, stream.tasks, results)
    answered = gallery(stream, model, results[-1].final_answers)
    questions = sum(len(experience.test) for experience in stream.experiences)
    page = write_report(
        report,
        figures,
        results,
        answered,
        title="A frozen model learns a stream of tasks",
        when=f"demo, seed {seed}",
        questions=questions,
    )
    if as_json:
        print_json(figures)
        return
    console.print(_table(results))
    console.print(f"report: {page}")


def _write(folder: Path, seed: int, as_json: bool, quiet: bool) -> None:
    from inducekv.embedded.files import write_drawn_tasks

    written = write_drawn_tasks(folder, seed)
    if as_json:
        print_json({"folders": list(map(str, written))})
    elif not quiet:
        out().print("\n".join(f"{task}: train.jsonl, test.jsonl" for task in written))


def _so_far(tasks: Sequence[str], number: int, results: Sequence[MethodResult]) -> Table:
    title = f"after task {number + 1} of {len(tasks)}, {tasks[number]}: accuracy in percent"
    table = Table(title=title, title_justify="left", title_style="", box=None, header_style="dim")
    table.add_column("")
    for result in results:
        table.add_column(result.title, justify="right", style="bold" if result.name == "inducekv" else None)
    rows = [result.matrix[number, : number + 1] for result in results]
    for on, task in enumerate(tasks[: number + 1]):
        table.add_row(task, *(f"{row[on]:.0f}" for row in rows))
    table.add_row("mean so far", *(f"{row.mean():.1f}" for row in rows), end_section=True)
    return table


def _table(results: Sequence[MethodResult]) -> Table:
    table = Table(title="the whole stream", title_justify="left", title_style="bold")
    for heading in ("method", "Avg", "Last", "forgetting", "bytes", "learn s", "answer s"):
        table.add_column(heading, justify="left" if heading == "method" else "right")
    for result in results:
        figures = result.to_dict()
        table.add_row(
            result.title,
            f"{figures['avg']:.1f}",
            f"{figures['last']:.1f}",
            f"{figures['forgetting']:.1f}",
            f"{result.deployed_bytes:,}",
            f"{result.learn_seconds:.1f}",
            f"{result.answer_seconds:.1f}",
            style="bold" if result.name == "inducekv" else None,
        )
    return table
