"""learn, ask, inspect, forget."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from inducekv.cli.common import (
    JsonOption,
    MemoryOption,
    ModelOption,
    QuietOption,
    SeedOption,
    config_fields,
    helpful,
    load_model,
    model_of,
    out,
    print_json,
    printable,
)
from inducekv.cli.waiting import waits

_CONFIG_PANEL = "How to learn (all knobs: --config)"


def register(app: typer.Typer) -> None:
    for command in (learn, ask, inspect, forget):
        app.command()(helpful(command))


@waits("torch", "transformers")
def learn(
    data: Annotated[Path, typer.Argument(help="JSONL, LLaVA or chat JSON file, or a folder with train.jsonl.")],
    memory: MemoryOption,
    task: Annotated[str | None, typer.Option(help="Name of the task; by default the name of the data.")] = None,
    model: ModelOption = None,
    system: Annotated[str | None, typer.Option(help="Text that every prompt begins with; the memory keeps it.")] = None,
    budget: Annotated[str | None, typer.Option(help="Bytes the memory may take, such as 256KiB.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON file with InduceKVConfig fields.", rich_help_panel=_CONFIG_PANEL)
    ] = None,
    fast: Annotated[
        bool,
        typer.Option(
            "--fast", help="Read every example once: facility location, no calibration.", rich_help_panel=_CONFIG_PANEL
        ),
    ] = False,
    selector: Annotated[
        str | None,
        typer.Option(
            help="bilevel, greedy, facility_location, herding, reservoir or random.", rich_help_panel=_CONFIG_PANEL
        ),
    ] = None,
    payload: Annotated[
        str | None, typer.Option(help="keep_answer, mean_pool, shift_kv, none or auto.", rich_help_panel=_CONFIG_PANEL)
    ] = None,
    payload_tokens: Annotated[
        int | None, typer.Option(help="Tokens that pooling leaves of an entry.", rich_help_panel=_CONFIG_PANEL)
    ] = None,
    payload_dtype: Annotated[
        str | None,
        typer.Option(
            help="float32, float16, bfloat16, int8, int4, int3, int2, levels4, polar4 or polar3.",
            rich_help_panel=_CONFIG_PANEL,
        ),
    ] = None,
    candidates: Annotated[
        int | None,
        typer.Option(help="Most new examples to consider; by default all.", rich_help_panel=_CONFIG_PANEL),
    ] = None,
    top_k: Annotated[
        int | None, typer.Option(help="Entries retrieved for a question.", rich_help_panel=_CONFIG_PANEL)
    ] = None,
    replay: Annotated[
        bool,
        typer.Option(
            "--replay/--no-replay",
            help="Keep some raw examples beside the memory, to hold earlier tasks when the next is learned. "
            "--no-replay keeps none and deletes those kept before.",
        ),
    ] = True,
    seed: Annotated[int | None, typer.Option("--seed", min=0, help="Seed of every random draw.")] = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Learn a task from examples; an existing memory is extended."""
    from inducekv import InduceKVConfig, KVMemory, read_examples
    from inducekv.bytes import format_bytes, parse_bytes
    from inducekv.config import FAST
    from inducekv.error_text import escaped
    from inducekv.memory_config import config_of
    from inducekv.memory_file import lock, sweep
    from inducekv.model_name import note_model
    from inducekv.progress import console_progress

    given: dict[str, Any] = {
        "budget": budget,
        "selector": selector,
        "payload": payload,
        "payload_tokens": payload_tokens,
        "payload_dtype": payload_dtype,
        "candidates": candidates,
        "top_k": top_k,
        "seed": seed,
        "anchors": None if replay else 0,
    }
    changes = {
        **config_fields(config),
        **(FAST if fast else {}),
        **{name: value for name, value in given.items() if value is not None},
    }
    if "budget" in changes:
        parse_bytes(changes["budget"])
    examples = read_examples(data)
    name = task or (data.stem if data.is_file() else data.resolve().name)
    memory.mkdir(parents=True, exist_ok=True)
    progress = console_progress(quiet)
    with lock(memory):
        sweep(memory)
        stored = KVMemory.from_pretrained(memory) if _holds_memory(memory) else None
        source = model_of(stored, model)
        if stored is None:
            InduceKVConfig.from_dict(changes)  # a mistake in them is told before a model loads
        else:
            config_of(stored, changes)
        induced = load_model(source, None if stored is None else memory, changes, system)
        revision = getattr(induced.backbone.model.config, "_commit_hash", None)
        note_model(induced.memory, source, revision, folder=Path(source).exists())
        report = induced.learn(examples, task=name, progress=progress)
        induced.save_memory(memory)
    result = report.to_dict() | {"memory": str(memory)}
    if as_json:
        print_json(result)
        return
    out().print(
        f"learned {name}: kept {len(report.chosen)} of {report.candidates} candidates; "
        f"{format_bytes(induced.memory.file_nbytes)} of {format_bytes(induced.memory.budget)} used -> "
        f"{escaped(str(memory))}"
    )
    for note in report.notes:
        out().print(f"note: {printable(note)}")


@waits("torch", "transformers")
def ask(
    question: Annotated[str, typer.Argument(help="What to ask.")],
    memory: MemoryOption,
    image: Annotated[list[Path] | None, typer.Option(help="A picture; give it again for several.")] = None,
    model: ModelOption = None,
    seed: SeedOption = 0,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Answer a question, and name the entries the answer was read from."""
    import torch

    from inducekv import KVMemory
    from inducekv.examples import check_image

    for path in image or []:
        check_image(path)
    torch.manual_seed(seed)
    stored = KVMemory.from_pretrained(memory)
    induced = load_model(model_of(stored, model), memory)
    answer = induced.answer(image or [], question)
    if as_json:
        print_json({"answer": answer.text, "sources": [asdict(source) for source in answer.sources]})
        return
    out().print(printable(answer.text) or "(an empty answer)", style="bold")
    if quiet:
        return
    if not answer.sources:
        out().print("no entry is near enough to this question: answered as the plain model would", style="dim")
        return
    table = Table(box=None, header_style="dim")
    for heading in ("entry", "task", "α", "mass", "answer"):
        table.add_column(heading, justify="right" if heading in ("α", "mass") else "left")
    table.add_column("question", no_wrap=True, overflow="ellipsis")
    for source in answer.sources:
        table.add_row(
            source.id,
            source.task,
            f"{source.alpha:.3f}",
            f"{source.mass:.3f}",
            printable(source.answer),
            printable(source.question),
        )
    out().print(table)
    out().print("mass: share of attention, mean over layers, heads and positions", style="dim")


@waits("torch")
def inspect(
    memory: Annotated[Path, typer.Argument(help="Folder of the memory.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Show what a memory holds: tasks, entries, bytes by kind, calibration, fingerprint. Needs no model."""
    from inducekv import KVMemory
    from inducekv.bytes import format_bytes
    from inducekv.error_text import escaped
    from inducekv.tuning.space import spans

    stored = KVMemory.from_pretrained(memory)
    counts: dict[str, int] = {}
    for entry in stored.entries:
        counts[entry.task] = counts.get(entry.task, 0) + 1
    lambdas = [float(value) for value in stored.calibration.lambdas]
    tau = float(stored.calibration.tau)
    result = {
        "memory": str(memory),
        "entries": len(stored),
        "tasks": counts,
        "nbytes": stored.nbytes,
        "file_nbytes": stored.file_nbytes,
        "budget": stored.budget,
        "bytes_by_kind": stored.bytes_by_kind(),
        "layers": list(stored.layout.layers),
        "payload_dtype": stored.payload_dtype,
        "key_dtype": stored.layout.key_dtype,
        "calibration": {"tau": tau, "lambdas": lambdas},
        "thresholds": dict(stored.thresholds),
        "metadata": dict(stored.metadata),
        "fingerprint": stored.fingerprint,
    }
    if as_json:
        print_json(result)
        return
    console = out()
    console.print(
        f"{escaped(str(memory))}: {len(stored)} entries, {format_bytes(stored.file_nbytes)} of "
        f"{format_bytes(stored.budget)}",
        style="bold",
    )
    if quiet:
        return
    table = Table("task", "entries", box=None, header_style="dim")
    for name, count in counts.items():
        table.add_row(name, str(count))
    console.print(table)
    kinds = Table("bytes", "", box=None, header_style="dim")
    for kind, nbytes in stored.bytes_by_kind().items():
        kinds.add_row(kind, f"{nbytes:,}")
    console.print(kinds)
    layers = f"layer{'s' * (len(stored.layout.layers) > 1)} {spans(stored.layout.layers)}"
    console.print(f"payloads of {layers} in {stored.payload_dtype}, retrieval keys in {stored.layout.key_dtype}")
    scales = "  ".join(f"{layer}: {value:.2f}" for layer, value in zip(stored.layout.layers, lambdas, strict=True))
    console.print(f"calibration: τ {tau:.4f}; λ of layer {scales}")
    console.print("fingerprint: " + json.dumps(stored.fingerprint, sort_keys=True), style="dim")


@waits("torch")
def forget(
    memory: Annotated[Path, typer.Argument(help="Folder of the memory.")],
    task: Annotated[str, typer.Option(help="Name of the task to forget.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Take a task out of a memory, and its raw examples out of the training state; nothing of it stays in the files."""
    from inducekv import KVMemory
    from inducekv.error_text import shown, shown_name
    from inducekv.memory_file import lock, save, stored_state, sweep
    from inducekv.training_state import TrainingState

    if not memory.is_dir():
        raise ValueError(f"{memory}: no such folder")
    note = ""
    with lock(memory):
        sweep(memory)  # what an interrupted forget left is gone before anything else is looked at
        stored = KVMemory.from_pretrained(memory)
        if task not in stored.tasks:
            holds = shown_name(", ".join(stored.tasks), 150) or "no tasks"
            raise ValueError(f"no task {shown(task)} in {shown_name(memory)}; it holds: {holds}")
        try:
            state = stored_state(stored, memory)
        except ValueError as error:
            state, note = TrainingState(), f"examples kept of all tasks were deleted, since {error}"
        dropped = stored.forget(task)
        state.forget(task)
        save(stored, memory, state)
    if as_json:
        print_json({"memory": str(memory), "task": task, "dropped": dropped, "nbytes": stored.nbytes, "note": note})
    elif not quiet:
        out().print(f"forgot {task}: {dropped} entries dropped, {len(stored)} left")
        if note:
            out().print(f"note: {note}")


def _holds_memory(folder: Path) -> bool:
    return (folder / "memory.json").exists()
