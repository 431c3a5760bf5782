"""demo."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from inducekv.cli.common import JsonOption, QuietOption, SeedOption, helpful, out, print_json, require_extra
from inducekv.cli.waiting import loading, waiting_for, waits

if TYPE_CHECKING:
    from inducekv import Backbone
    from inducekv.continual.gallery import AnsweredQuestion
    from inducekv.continual.runner import MethodResult
    from inducekv.progress import Progress

SHOWN = ("zero_shot", "nearest_neighbour", "sequential_lora", "inducekv")


def register(app: typer.Typer) -> None:
    app.command()(helpful(demo))


@waits()
def demo(
    text: Annotated[
        bool, typer.Option("--text", help="Real requests and a published language model (SmolLM2) instead of drawings.")
    ] = False,
    budget: Annotated[
        str | None, typer.Option(help="Bytes that each method may keep: 256KiB, or 16MiB with --text, by default.")
    ] = None,
    report: Annotated[Path, typer.Option(help="Folder for the report.")] = Path("demo-report"),
    write_data: Annotated[
        Path | None,
        typer.Option(metavar="FOLDER", help="Only write the tasks there, as data for the other commands."),
    ] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Teach a model a stream of tasks it never saw, and compare; a few minutes.

    The model that ships with the package learns drawings; with --text, SmolLM2 (fetched once) learns real requests.
    """
    if write_data is not None:
        _write(write_data, text, seed, as_json, quiet)
        return
    for module in ("matplotlib",) if text else ("peft", "matplotlib", "sklearn"):
        require_extra(module)
    loading("torch", "transformers")
    from inducekv import Backbone
    from inducekv.bytes import format_bytes, parse_bytes
    from inducekv.continual.gallery import gallery
    from inducekv.continual.report import results_object, write_report
    from inducekv.continual.runner import run
    from inducekv.progress import console_progress

    limit = parse_bytes(budget or ("16MiB" if text else "256KiB"))
    progress = console_progress(quiet)
    options: dict[str, Any] = {}
    if text:
        from inducekv.continual.text_demo import GRADED, methods_of_text_demo, stream_of_text_demo

        stream = stream_of_text_demo()
        methods, model = methods_of_text_demo(_published(progress, quiet or as_json), stream, limit, seed)
        options = {"graded": GRADED}
    else:
        from inducekv.continual.demo import methods_of_demo, stream_of_demo
        from inducekv.embedded import path

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
    answered = gallery(stream, model, next(r for r in results if r.name == "inducekv").final_answers)
    questions = sum(len(experience.test) for experience in stream.experiences)
    page = write_report(
        report,
        figures,
        results,
        answered,
        title="A frozen model learns a stream of tasks",
        when=f"demo, seed {seed}",
        questions=questions,
        **options,
    )
    if as_json:
        print_json(figures)
        return
    console.print(_table(results))
    if text:
        if not quiet:
            console.print(f"{GRADED} Sequential LoRA is left out, to stay within minutes.", style="dim")
        _show_answers(answered)
    console.print(f"report: {page}")


def _published(progress: Progress, silent: bool) -> Backbone:
    """The language model of `demo --text`, fetched if it is not there; in the CPU's fastest format."""
    from inducekv import Backbone
    from inducekv.cli.models import say_download
    from inducekv.continual.text_demo import MODEL, cpu_dtype
    from inducekv.fetching import fetch
    from inducekv.known_models import known

    model = known(MODEL)
    if not model.present:
        require_extra("gguf")
        if not silent:
            say_download(model)
        fetch(model, progress)
    waiting_for(f"loading {MODEL}")
    return Backbone.from_pretrained(MODEL, dtype=cpu_dtype())


def _show_answers(answered: Sequence[AnsweredQuestion]) -> None:
    """The first question shown of each of three tasks, with the entries that its answer was read from."""
    tasks = list(dict.fromkeys(item.task for item in answered))[:3]
    console = out()
    for item in (next(item for item in answered if item.task == task) for task in tasks):
        verdict = "right" if item.right else f"expected: {item.expected}"
        console.print(f"\n{item.question.partition(chr(10))[0]}", style="bold")
        read_from = "read from" if item.sources else "read from nothing: no entry was near enough"
        console.print(f"  {item.said} ({verdict}), {read_from}")
        for source in item.sources[:3]:
            asked = source.question.partition("\n")[0]
            console.print(f"  mass {source.mass:.2f}  {source.task} {source.id[:8]}: {asked} -> {source.answer}")
    console.print("")


def _write(folder: Path, text: bool, seed: int, as_json: bool, quiet: bool) -> None:
    if text:
        from inducekv.sample import write_sample

        written = write_sample(folder)
    else:
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
