"""check."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from inducekv.cli.common import (
    JsonOption,
    ModelOption,
    QuietOption,
    SeedOption,
    config_fields,
    helpful,
    load_model,
    model_of,
    out,
    print_json,
)
from inducekv.cli.waiting import waits

if TYPE_CHECKING:
    from inducekv.continual.memory_check import MemoryCheck


def register(app: typer.Typer) -> None:
    app.command()(helpful(check))


@waits("torch", "transformers")
def check(
    data: Annotated[Path, typer.Argument(help="Data as for learn; a folder may have test.jsonl beside train.jsonl.")],
    model: ModelOption = None,
    budget: Annotated[str | None, typer.Option(help="Bytes the memory may take; by default everything fits.")] = None,
    config: Annotated[Path | None, typer.Option(help="JSON file with InduceKVConfig fields.")] = None,
    examples: Annotated[int, typer.Option(min=1, help="Examples to learn, at most, balanced over answers.")] = 256,
    questions: Annotated[int, typer.Option(min=1, help="Questions to ask, at most, balanced over answers.")] = 64,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """How much of a prompt's accuracy does memory keep on your examples?

    Learns them into a memory that is thrown away, and asks questions with it, with the same entries as one prompt, and
    without. A third is asked where the data has no test part.
    """
    from inducekv import InduceKVConfig
    from inducekv.continual.memory_check import EVERYTHING, check_memory, examples_to_check
    from inducekv.progress import console_progress

    fields: dict[str, Any] = {"budget": EVERYTHING, **config_fields(config), "seed": seed}
    if budget is not None:
        fields["budget"] = budget
    InduceKVConfig.from_dict(fields)  # mistakes are told before the model loads
    train, test = examples_to_check(data, seed, learned=examples, asked=questions)
    backbone = load_model(model_of(None, model), None).backbone
    result = check_memory(backbone, train, test, backbone.config(fields), progress=console_progress(quiet))
    if as_json:
        print_json(result.to_dict())
        return
    _show(result, quiet)


def _show(result: MemoryCheck, quiet: bool) -> None:
    console = out()
    table = Table(box=None, header_style="dim")
    slots = any(method.slot_f1 is not None for method in result.methods.values())
    table.add_column("")
    for heading in ("exact %", *(["slot F1 %"] if slots else []), "seconds", "bytes"):
        table.add_column(heading, justify="right")
    for method in result.methods.values():
        shown = [f"{score:.1f}" for score in (method.accuracy, method.slot_f1) if score is not None]
        style = "bold" if method.name == "inducekv" else None
        table.add_row(method.title, *shown, f"{method.seconds:.1f}", f"{method.nbytes:,}", style=style)
    if not quiet:
        share = result.parity.error / result.parity.effect
        console.print(f"memory reads as prompt tokens on this model (within {share:.1g} of what they change)\n")
    console.print(table)
    if not quiet:
        console.print(
            f"\n{result.asked} questions; {result.entries} of {result.learned} examples are entries, learned in "
            f"{result.learn_seconds:.1f} s. Retrieved prompt: the same entries in one prompt. Masked prompt: each "
            "encoded alone, in full precision.",
            style="dim",
        )
    console.print(result.meaning)
