"""eval."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from inducekv.cli.common import (
    JsonOption,
    MemoryOption,
    ModelOption,
    QuietOption,
    SeedOption,
    helpful,
    load_model,
    model_of,
    out,
    print_json,
)
from inducekv.cli.waiting import waits


def register(app: typer.Typer) -> None:
    app.command("eval")(helpful(evaluate))


@waits("torch", "transformers")
def evaluate(
    data: Annotated[Path, typer.Argument(help="JSONL, LLaVA or chat JSON file, or a folder with test.jsonl.")],
    memory: MemoryOption,
    model: ModelOption = None,
    limit: Annotated[int | None, typer.Option(min=1, help="Ask only this many questions, drawn with the seed.")] = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Accuracy (exact match) with the memory, beside the plain model and the nearest entry's answer copied."""
    import torch

    from inducekv import KVMemory, read_examples
    from inducekv.continual.graders import accuracy
    from inducekv.continual.methods.inducekv import InduceKV
    from inducekv.continual.methods.nearest_neighbour import NearestNeighbour
    from inducekv.continual.methods.zero_shot import ZeroShot
    from inducekv.progress import console_progress

    examples = read_examples(data, split="test")
    if limit is not None and limit < len(examples):
        drawn = torch.randperm(len(examples), generator=torch.Generator().manual_seed(seed))[:limit]
        examples = [examples[index] for index in sorted(drawn.tolist())]
    stored = KVMemory.from_pretrained(memory)
    induced = load_model(model_of(stored, model), memory)
    progress = console_progress(quiet)
    methods = (InduceKV(induced), ZeroShot(induced.backbone), NearestNeighbour(induced))
    expected = [example.answer or "" for example in examples]
    result = {method.name: accuracy(method.answer(examples, progress), expected) for method in methods}
    if as_json:
        print_json({"data": str(data), "memory": str(memory), "questions": len(examples), "accuracy": result})
        return
    table = Table("", "accuracy %", box=None, header_style="dim")
    for method in methods:
        table.add_row(method.title, f"{result[method.name]:.1f}", style="bold" if method.name == "inducekv" else None)
    out().print(table)
    if not quiet:
        out().print(f"{len(examples)} questions of {data}; exact match, an empty answer is wrong", style="dim")
