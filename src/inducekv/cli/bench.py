"""bench: list, run, report, check."""

from __future__ import annotations

import fnmatch
from collections.abc import Callable
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer
from rich.table import Table

from inducekv.cli.common import JsonOption, QuietOption, helpful, out, print_json, require_extra
from inducekv.cli.waiting import waiting_for, waits
from inducekv.error_text import shown

if TYPE_CHECKING:
    from inducekv import Backbone

bench = typer.Typer(help="Compare continual-learning methods, all within the same bytes.", no_args_is_help=True)

RootOption = Annotated[Path | None, typer.Option(help="Folder of the stream's data; generated streams need none.")]


def register(app: typer.Typer) -> None:
    for command, name in ((streams_and_methods, "list"), (run, "run"), (report, "report"), (check, "check")):
        bench.command(name)(helpful(command))
    app.add_typer(bench, name="bench")


def streams_and_methods(
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Names alone.")] = False,
) -> None:
    """What can be run: streams and methods."""
    from inducekv.continual.catalogue import CATALOGUE
    from inducekv.continual.streams import STREAMS

    if as_json:
        print_json(
            {
                "streams": {name: kind.summary for name, kind in STREAMS.items()},
                "methods": {
                    name: {
                        "title": kind.title,
                        "summary": kind.summary,
                        "reference": kind.reference,
                        "only_named": kind.only_named,
                    }
                    for name, kind in CATALOGUE.items()
                },
            }
        )
        return
    if quiet:
        out().print("\n".join((*STREAMS, *CATALOGUE)))
        return
    table = Table("stream", "", "data", box=None, header_style="bold")
    for name, kind in STREAMS.items():
        table.add_row(name, kind.summary, "--root" if kind.needs_root else "generated")
    out().print(table, "")
    for reference, heading in ((True, "reference rows"), (False, "methods")):
        table = Table(heading, "", box=None, header_style="bold")
        for name, method in CATALOGUE.items():
            if method.reference is reference:
                table.add_row(name, method.summary + (" (not in `all`)" if method.only_named else ""))
        out().print(table, "")


@waits("torch", "transformers")
def run(
    streams: Annotated[
        list[str],
        typer.Argument(
            metavar="STREAM", help="Names of streams, or patterns such as 'embedded/*'; see `inducekv bench list`."
        ),
    ],
    methods: Annotated[str, typer.Option(help="Methods, comma-separated, or `all` (of `bench list`).")] = "all",
    budget: Annotated[str, typer.Option(help="Bytes that each method may deploy; several comma-separated.")] = "256KiB",
    seeds: Annotated[str, typer.Option(help="Seeds, comma-separated.")] = "0",
    model: Annotated[str, typer.Option(help="Model name, folder, or `embedded`.")] = "embedded",
    root: RootOption = None,
    results: Annotated[Path, typer.Option(help="Folder of results; runs found there are not run again.")] = Path(
        "benchmarks/results"
    ),
    limit: Annotated[int | None, typer.Option(min=1, help="Examples of each split of a task, at most.")] = None,
    tasks: Annotated[int | None, typer.Option(min=1, help="Only so many of a stream's first tasks.")] = None,
    train_samples: Annotated[
        int | None, typer.Option(min=1, help="Examples to learn a task from, at most, balanced over answers.")
    ] = None,
    test_samples: Annotated[
        int | None, typer.Option(min=1, help="Questions asked of a task, at most, balanced over answers.")
    ] = None,
    evaluate: Annotated[
        str | None,
        typer.Option(
            help="Cells of the accuracy matrix that are asked: `all`, `diagonal+last` (Last and forgetting) or `last`; "
            "by default what suits the stream."
        ),
    ] = None,
    choices: Annotated[
        bool,
        typer.Option("--choices", help="Keep the list of choices in the questions (text/clinc150, text/banking77)."),
    ] = False,
    epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Of LoRA; other trained methods in proportion. By default what suits the stream."),
    ] = None,
    learning_rate: Annotated[
        float | None, typer.Option(min=1e-9, help="Of LoRA; other trained methods in proportion.")
    ] = None,
    dtype: Annotated[
        str | None,
        typer.Option(help="Of the model's weights: float32, bfloat16 (several times faster on CPUs that have it)."),
    ] = None,
    max_new_tokens: Annotated[
        int | None, typer.Option(min=1, help="Longest answer in tokens; by default what suits the stream.")
    ] = None,
    ahead: Annotated[bool, typer.Option(help="Ask each task also before it is learned (forward transfer).")] = True,
    jobs: Annotated[
        int,
        typer.Option(min=1, help="Processes that run methods side by side, each with a model of its own."),
    ] = 1,
    batch_size: Annotated[
        int | None,
        typer.Option(min=1, help="Questions answered in one forward pass; by default 128 for a small model, else 32."),
    ] = None,
    as_json: JsonOption = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Give up what unfinished runs of these left, and start them anew.")
    ] = False,
    quiet: QuietOption = False,
) -> None:
    """Run methods over streams and write one JSON file for each method, budget and seed.

    Run it again after an interruption: finished runs are skipped, the unfinished one goes on at the task it was at.
    """
    from inducekv.bytes import parse_bytes
    from inducekv.continual.bench import Bench, give_up, passes
    from inducekv.continual.jobs import run_in_processes
    from inducekv.continual.methods import METHODS
    from inducekv.continual.passes import Settings
    from inducekv.progress import console_progress
    from inducekv.ranks import Ranks

    every = [name for name, kind in METHODS.items() if not kind.only_named]
    names = every if methods == "all" else _listed("--methods", methods)
    budgets = [parse_bytes(size) for size in _listed("--budget", budget)]
    todo = [one for stream in _streams(streams) for one in passes(stream, names, budgets, _seeds(seeds))]
    for module in sorted({METHODS[name].needs or "" for one in todo for name in one.methods} - {""}):
        require_extra(module)
    settings = Settings(
        model,
        limit,
        max_new_tokens,
        ahead,
        tasks=tasks,
        train_samples=train_samples,
        test_samples=test_samples,
        evaluate=_cells(evaluate),
        choices=choices,
        epochs=epochs,
        learning_rate=learning_rate,
        dtype=dtype,
    )
    if jobs > 1:
        if Ranks.started() > 1:
            raise ValueError(
                f"--jobs {jobs} within {Ranks.started()} processes that were started together: choose one, --jobs to "
                "run methods side by side, or accelerate launch to share out each method's work"
            )
        first = True
        if restart:
            give_up(results, todo)
        written, left_out = run_in_processes(
            results,
            todo,
            jobs,
            settings,
            root=root,
            batch_size=batch_size,
            say=_say(not (quiet or as_json)),
            progress=console_progress(quiet),
        )
    else:
        ranks = Ranks.of_environment()
        first = ranks.first
        if restart:
            if ranks.first:
                give_up(results, todo)
            ranks.wait()
        started = Bench(
            results,
            lambda: _backbone(model, ranks.device, dtype),
            settings,
            root=root,
            ranks=ranks,
            batch_size=batch_size,
            say=_say(first and not (quiet or as_json)),
            progress=console_progress(quiet or not first),
        )
        written, left_out = [path for one in todo for path in started.run(one)], started.left_out
    if not written:
        why = "; ".join(left_out)
        raise ValueError(f"there are no results: {why}; raise --budget, or choose other methods")
    if first and as_json:
        print_json({"results": str(results), "written": list(map(str, written)), "left_out": left_out})
    elif first and not quiet:
        out().print(f"{len(written)} results in {results}; show them with: inducekv bench report {results}")


@waits("torch", "transformers")
def report(
    results: Annotated[Path, typer.Argument(help="Folder of results.")] = Path("benchmarks/results"),
    output: Annotated[Path | None, typer.Option(help="Folder for the report; default: RESULTS/report.")] = None,
    root: RootOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Turn results into one HTML page, the same as Markdown, and their tables as CSV."""
    for module in ("matplotlib", "pandas"):
        require_extra(module)
    from inducekv.continual.report.bench import write_bench_report
    from inducekv.continual.report.tables import leaderboard
    from inducekv.continual.results import read_results
    from inducekv.progress import console_progress

    found = read_results(results)
    folder = output or results / "report"
    page = write_bench_report(folder, found, root=root, progress=console_progress(quiet))
    if as_json:
        print_json({"page": str(page), "leaderboard": leaderboard(found).to_dict("records")})
        return
    out().print(f"{len(found)} results; report: {page}")


@waits()
def check(
    stream: Annotated[str, typer.Argument(help="Name of a stream; see `inducekv bench list`.")],
    root: RootOption = None,
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Say what is missing or malformed in a download of a stream's data; exit code 1 if anything is."""
    from inducekv.continual.streams import STREAMS, check_stream

    if stream not in STREAMS:
        raise ValueError(f"no stream {shown(stream)}; known: {', '.join(STREAMS)}")
    if root is None and STREAMS[stream].needs_root:
        raise ValueError(f"{stream} is read from a download: give its folder with --root")
    if not quiet:
        waiting_for(f"reading {root or stream}")
    problems = check_stream(stream, root or Path())
    if as_json:
        print_json({"stream": stream, "root": str(root), "problems": problems})
    elif not problems:
        out().print(f"{stream}: complete")
    else:
        out().print("\n".join(problems))
    if problems:
        raise typer.Exit(1)


def _listed(option: str, text: str) -> list[str]:
    values = [part.strip() for part in text.split(",") if part.strip()]
    if not values:
        raise ValueError(f"{option} needs at least one value, got {shown(text)}")
    return values


def _cells(text: str | None) -> Any:
    from inducekv.continual.metrics import Evaluate

    if text is not None and text not in get_args(Evaluate):
        raise ValueError(f"--evaluate must be one of {', '.join(get_args(Evaluate))}; got {shown(text)}")
    return text


def _streams(names: list[str]) -> list[str]:
    """The streams that names and patterns stand for, each once; what stands for none is refused before any is run."""
    from inducekv.continual.streams import STREAMS, stream_kind

    matching = [fnmatch.filter(STREAMS, name) or [stream_kind(name).name] for name in names]
    return list(dict.fromkeys(chain.from_iterable(matching)))


def _seeds(text: str) -> list[int]:
    try:
        seeds = [int(part) for part in _listed("--seeds", text)]
    except ValueError as error:
        raise ValueError(f"--seeds must be whole numbers, comma-separated, got {shown(text)}") from error
    if min(seeds) < 0:
        raise ValueError(f"--seeds must not be negative, got {shown(text)}")
    return seeds


def _say(aloud: bool) -> Callable[[str], None]:
    return (lambda line: out().print(line)) if aloud else (lambda line: None)


def _backbone(model: str, device: str, dtype: str | None) -> Backbone:
    from inducekv.named import load_backbone

    return load_backbone(model, device, dtype=dtype)
