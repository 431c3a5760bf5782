"""doctor: what inducekv can do with a model."""

from __future__ import annotations

from typing import Annotated

import typer
from rich.table import Table

from inducekv.cli.common import JsonOption, QuietOption, helpful, out, print_json
from inducekv.cli.waiting import waits

BUDGETS = ["64KiB", "256KiB", "1MiB", "16MiB"]


def register(app: typer.Typer) -> None:
    app.command()(helpful(doctor))


@waits("torch", "transformers")
def doctor(
    model: Annotated[str, typer.Argument(help="Folder of a model, its config.json, a model name, or `embedded`.")],
    budget: Annotated[list[str] | None, typer.Option(help="Budget to count entries for; may be repeated.")] = None,
    tokens: Annotated[int, typer.Option(min=1, help="Memory tokens of an entry.")] = 16,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say from a model's configuration alone whether it can read memory, and what entries weigh.

    The exit code is 1 where it cannot, and where something that it needs is not installed.
    """
    from inducekv.bytes import format_bytes
    from inducekv.doctor import BITS, examine

    budgets, found = budget or BUDGETS, examine(model)
    if as_json:
        print_json(found.to_dict(budgets, tokens))
        raise typer.Exit(0 if found.ready else 1)
    console = out()
    verdict = "supported" if found.supported else "not supported"
    if found.supported and not found.ready:
        verdict = f"supported, but cannot be loaded without {' and '.join(found.missing)}"
    console.print(f"{found.model}: {verdict}", markup=False)
    for fault in found.faults:
        console.print(f"- {fault}", markup=False)
    if quiet:
        raise typer.Exit(0 if found.ready else 1)
    console.print(f"family {found.family}, text decoder {found.decoder}, rope {', '.join(found.rope) or '?'}")
    if found.layout is not None:
        sizes = f"{found.layers} layers, {found.kv_heads} KV heads of {found.head_dim}, hidden {found.hidden_size}"
        console.print(sizes, markup=False)
        table = Table(title=f"Entries of {tokens} tokens that fit", title_justify="left")
        for name in ("bits", "a token slot", *budgets):
            table.add_column(name, justify="right")
        for bits in BITS:
            counts = [f"{found.entries(b, tokens, bits):,}" for b in budgets]
            table.add_row(str(bits), format_bytes(found.slot_nbytes(bits)), *counts)
        console.print(table)
    for note in found.notes:
        console.print(f"- {note}", markup=False)
    raise typer.Exit(0 if found.ready else 1)
