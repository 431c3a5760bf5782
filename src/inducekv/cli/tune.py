"""tune."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from inducekv.cli.common import (
    JsonOption,
    ModelOption,
    QuietOption,
    config_fields,
    helpful,
    load_model,
    model_of,
    out,
    print_json,
    require_extra,
)
from inducekv.cli.waiting import waits

if TYPE_CHECKING:
    from inducekv.tuning import TuneReport


def register(app: typer.Typer) -> None:
    app.command()(helpful(tune))


@waits("torch", "transformers")
def tune(
    source: Annotated[
        Path,
        typer.Argument(
            metavar="MEMORY_OR_DATA",
            help="Data as for learn, a folder with one such file or folder a task, or a memory (its anchors).",
        ),
    ],
    budget: Annotated[
        str | None, typer.Option(help="Bytes the memory may take; by default the memory's, else 256KiB.")
    ] = None,
    tasks: Annotated[
        int | None,
        typer.Option(min=1, help="Tasks the memory is to hold in the end; by default those of the data."),
    ] = None,
    model: ModelOption = None,
    config: Annotated[Path | None, typer.Option(help="JSON file with InduceKVConfig fields to start from.")] = None,
    points: Annotated[int | None, typer.Option(min=1, help="Ways of storing to look at, at most.")] = None,
    questions: Annotated[int | None, typer.Option(min=1, help="Questions to hold out and ask, at most.")] = None,
    out_file: Annotated[Path | None, typer.Option("--out", help="Write the fields for learn --config here.")] = None,
    plot: Annotated[Path | None, typer.Option(help="Draw the frontier here (.png or .svg).")] = None,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of every random draw.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Find how to store entries under a budget: tokens, bits and layers, measured on examples held out of the data."""
    changes = config_fields(config) | {
        name: value for name, value in (("budget", budget), ("seed", seed)) if value is not None
    }
    if plot is not None:
        require_extra("matplotlib")
        from inducekv.tuning.frontier import checked_form

        checked_form(plot)
    for file in (out_file, plot):
        if file is not None and not file.resolve().parent.is_dir():
            raise ValueError(f"{file}: there is no folder {file.resolve().parent}")
    from inducekv import InduceKVConfig
    from inducekv.progress import console_progress
    from inducekv.tuning import source_of
    from inducekv.tuning import tune as tuned
    from inducekv.tuning.frontier import picture

    given = source_of(source)
    known = {} if given.config is None else given.config.to_dict()
    fields = InduceKVConfig.from_dict({**known, **changes})  # mistakes are told before the model loads
    backbone = load_model(model_of(given.memory, model), None).backbone
    start = backbone.config(changes) if given.config is None else fields
    limits = {name: value for name, value in (("points", points), ("questions", questions)) if value is not None}
    report = tuned(backbone, given.tasks, start, tasks_in_all=tasks, progress=console_progress(quiet), **limits)
    if out_file is not None:
        out_file.write_text(json.dumps(report.fields, indent=2) + "\n", encoding="utf-8")
    if plot is not None:
        picture(report, plot)
    if as_json:
        print_json(report.to_dict())
        return
    _show(report, out_file, quiet)


def _show(report: TuneReport, out_file: Path | None, quiet: bool) -> None:
    from inducekv.bytes import format_bytes
    from inducekv.tuning.frontier import rows_of

    console = out()
    if not quiet:
        table = Table(box=None, header_style="dim")
        right = ("bytes", "entries", "%", "nll")
        for heading in ("", "payload", "format", "keys", "layers", *right):
            table.add_column(heading, justify="right" if heading in right else "left", no_wrap=True)
        for row in rows_of(report):
            table.add_row(*row, style="bold" if row[0] == ">" else None)
        console.print(table)
        console.print(
            f"> chosen, * on the frontier: no smaller entry does better. bytes: of an entry; entries: those that "
            f"{format_bytes(report.budget)} held, of {report.learned}; %: of {report.questions} questions held out "
            "that were answered correctly; nll: nats an answer token",
            style="dim",
        )
    chosen, before = report.chosen, report.start
    console.print(f"chosen: {chosen.point.label}: {chosen.entries} entries, {chosen.accuracy:.1f} %", style="bold")
    if before is not None and before.point != chosen.point:
        console.print(f"start: {before.point.label}: {before.entries} entries, {before.accuracy:.1f} %")
    for note in report.notes:
        console.print(f"note: {note}")
    if out_file is not None:
        console.print(f"learn with it: inducekv learn DATA --memory MEMORY --config {out_file}")
    else:
        console.print(f"InduceKVConfig fields (--out writes them for learn --config): {json.dumps(report.fields)}")
