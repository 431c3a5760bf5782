"""Does memory teach a published model as well as a prompt does? Accuracy on streams of real text, gate by gate.

    python benchmarks/real_text.py [--results FOLDER] [--seeds 0,1,2] [--json]
    python benchmarks/real_text.py --run --root <data> [--model smollm2] [--train-samples N] [--test-samples N]
    python benchmarks/real_text.py --second <model> --tasks 1 [--run --root <data>]

Reads results of `inducekv bench run` and prints Last of every method by stream and seed, then the differences that are
asked for, means over seeds. With `--run` what is missing is run first. `--second` is for another model, of which only
the gate against the prompt is asked. Training and test samples are part of a result: give the same ones again.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from inducekv.bytes import parse_bytes
from inducekv.continual.bench import passes
from inducekv.continual.jobs import run_in_processes
from inducekv.continual.methods import METHODS
from inducekv.continual.methods.trained import TrainedMethod
from inducekv.continual.passes import Settings
from inducekv.continual.results import Result, ResultError, read_results

STREAMS = ("text/clinc150", "text/banking77", "text/snips-slots")
OURS, PROMPT, COPY, WHOLE = "inducekv", "retrieved_prompt", "nearest_neighbour", "masked_prompt"
LARGE, SMALL = "16MiB", "4MiB"
IN_TURN = ("sequential_lora", "replay_lora", "olora")
"""Methods that learn task by task, run by default; every other one that is among the results counts too."""


SHARED = ("model", "tasks", "limit", "train_samples", "test_samples", "epochs", "learning_rate", "dtype")


@dataclass(frozen=True)
class Gate:
    """What is asked, the number that was found (None: results are missing), and the least (or most) it may be."""

    asked: str
    found: float | None
    bound: float
    at_most: bool = False

    @property
    def verdict(self) -> str:
        if self.found is None:
            return "not measured"
        met = self.found <= self.bound if self.at_most else self.found >= self.bound
        return "met" if met else "missed"

    def row(self) -> dict[str, Any]:
        bound = f"{'<=' if self.at_most else '>='} {self.bound:+g}"
        return {"gate": self.asked, "found": self.found, "asked": bound, "": self.verdict}


class Table:
    """Figures of results by method, budget, stream and seed."""

    def __init__(self, results: Sequence[Result], streams: Sequence[str], seeds: Sequence[int]) -> None:
        self.streams, self.seeds = streams, seeds
        self.by_run = {result.run: result for result in results}
        self.methods = list(dict.fromkeys(result.method for result in results))

    def each(self, method: str, budget: str, stream: str, figure: str = "last") -> list[float | None]:
        """The figure for each seed; None where it is missing."""
        runs = [self.by_run.get((stream, method, parse_bytes(budget), seed)) for seed in self.seeds]
        return [None if run is None else run.figures()[figure] for run in runs]

    def of(self, method: str, budget: str, stream: str, figure: str = "last") -> float | None:
        """Mean over seeds; None where any is missing."""
        return mean(self.each(method, budget, stream, figure))

    def over_streams(self, get: Callable[[str], float | None]) -> float | None:
        return mean([get(stream) for stream in self.streams])

    def ahead(self, budget: str, method: str, other: str) -> Callable[[str], float | None]:
        """Points of Last that `method` is ahead of `other` on a stream."""
        return lambda stream: difference(self.of(method, budget, stream), self.of(other, budget, stream))

    def in_turn(self) -> list[str]:
        """Contenders that are trained on one task after another, of which there are results."""
        known = [name for name in self.methods if name in METHODS]
        return [n for n in known if issubclass(METHODS[n].method, TrainedMethod) and not METHODS[n].reference]


def mean(values: Sequence[float | None]) -> float | None:
    given = [value for value in values if value is not None]
    return float(np.mean(given)) if given and len(given) == len(values) else None


def difference(first: float | None, second: float | None) -> float | None:
    return None if first is None or second is None else first - second


def gates_of(table: Table, large: str, small: str) -> list[Gate]:
    """The gates about accuracy on the first model."""
    copied = [table.ahead(large, OURS, COPY)(stream) for stream in table.streams]
    worst = None if mean(copied) is None else min(value for value in copied if value is not None)
    rivals = {name: table.over_streams(lambda s, n=name: table.of(n, small, s)) for name in table.in_turn()}
    best = max((value for value in rivals.values() if value is not None), default=None)
    ours = table.over_streams(lambda stream: table.of(OURS, small, stream))
    name = next((METHODS[name].title for name, value in rivals.items() if value == best), "the best trained method")
    lost = table.over_streams(lambda stream: table.of(OURS, small, stream, "forgetting"))
    return [
        Gate(f"InduceKV - retrieved prompt, {large}", table.over_streams(table.ahead(large, OURS, PROMPT)), -1),
        Gate(f"InduceKV - label copy, {large}", mean(copied), 3),
        Gate(f"InduceKV - label copy, {large}, the worst stream", worst, 0),
        Gate(f"InduceKV - {name} (best that learns task by task), {small}", difference(ours, best), 5),
        Gate(f"Forgetting of InduceKV, {small}", lost, 2, at_most=True),
    ]


def second_gates(table: Table, large: str) -> list[Gate]:
    """The gate of another model."""
    found = table.over_streams(table.ahead(large, OURS, PROMPT))
    return [Gate(f"InduceKV - retrieved prompt, {large}", found, -2)]


def lasts(table: Table, budget: str) -> pd.DataFrame:
    """Last by method, and stream and seed; the mean over all beside it."""
    rows = []
    for method in table.methods:
        row: dict[str, Any] = {"method": METHODS[method].title if method in METHODS else method}
        for stream in table.streams:
            for seed, value in zip(table.seeds, table.each(method, budget, stream), strict=True):
                row[f"{stream.removeprefix('text/')}, {seed}"] = value
        row["mean"] = table.over_streams(lambda s, m=method: table.of(m, budget, s))
        row["forgetting"] = table.over_streams(lambda s, m=method: table.of(m, budget, s, "forgetting"))
        exact = [table.by_run.get((s, method, parse_bytes(budget), n)) for s in table.streams for n in table.seeds]
        row["exact match"] = mean([mean(r.also["exact"]) for r in exact if r is not None and "exact" in r.also])
        if any(value is not None for value in list(row.values())[1:]):
            rows.append(row)
    return pd.DataFrame(rows)


def made_as(result: Result) -> str:
    """What results that are compared should share, in a line."""
    asked = (f"{name} {result.settings[name]}" for name in SHARED if result.settings.get(name) is not None)
    return ", ".join([*asked, f"commit {str(result.versions.get('commit'))[:9]}"])


def run_missing(options: argparse.Namespace, large: str, small: str) -> None:
    """Runs what the gates need and is not there yet; the seconds of each are in its result."""
    settings = Settings(
        options.second or options.model,
        tasks=options.tasks,
        train_samples=options.train_samples,
        dtype=options.dtype,
        test_samples=options.test_samples,
    )
    parts = {large: (OURS, COPY, PROMPT, WHOLE)}
    if not options.second:
        parts[small] = (OURS, *options.in_turn)
    todo = [
        one
        for budget, methods in parts.items()
        for stream in options.streams
        for one in passes(stream, methods, [parse_bytes(budget)], options.seeds)
    ]
    run_in_processes(options.results, todo, options.jobs, settings, root=options.root, say=print)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    def names(text: str) -> list[str]:
        return [part.strip() for part in text.split(",") if part.strip()]

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results-text"), help="folder of results")
    parser.add_argument("--streams", type=names, default=list(STREAMS), help="comma-separated")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in names(text)], default=[0, 1, 2])
    parser.add_argument("--large", default=LARGE, help="budget of the gates against prompt and label copy")
    parser.add_argument("--small", default=SMALL, help="budget of the gates against trained methods")
    parser.add_argument("--in-turn", type=names, default=list(IN_TURN), help="methods that learn task by task, to run")
    parser.add_argument("--run", action="store_true", help="run what is missing")
    parser.add_argument("--root", type=Path, help="folder of the streams' data")
    parser.add_argument("--model", default="smollm2", help="model name or folder")
    parser.add_argument("--second", help="another model, of which only the gate against the prompt is asked")
    parser.add_argument("--tasks", type=int, help="only the first tasks of each stream")
    parser.add_argument("--train-samples", type=int)
    parser.add_argument("--test-samples", type=int)
    parser.add_argument("--dtype", help="of the weights: float32, bfloat16; by default the model's own")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    if options.run and options.root is None:
        parser.error("--run needs the folder of the streams' data: --root")
    if options.second:
        options.results = options.results.with_name(f"{options.results.name}-second")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    large, small = options.large, options.small
    if options.run:
        run_missing(options, large, small)
    try:
        results = [r for r in read_results(options.results) if r.stream in options.streams and r.seed in options.seeds]
    except ResultError as error:
        raise SystemExit(f"{error}; or give --run and --root") from error
    table = Table(results, options.streams, options.seeds)
    made_with = sorted({made_as(result) for result in results})
    gates = second_gates(table, large) if options.second else gates_of(table, large, small)
    tables = {budget: lasts(table, budget) for budget in dict.fromkeys((large, small))}
    if options.json:
        rows = {budget: json.loads(shown.to_json(orient="records")) for budget, shown in tables.items()}
        print(json.dumps({"made with": made_with, "gates": [gate.row() for gate in gates], "last": rows}))
        return
    print("Results made with:", *made_with, sep="\n  ", end="\n\n")
    for budget, shown in tables.items():
        if len(shown):
            print(f"Last, %, {budget}\n{shown.to_string(index=False, float_format='{:.1f}'.format, na_rep='-')}\n")
    print(pd.DataFrame([g.row() for g in gates]).to_string(index=False, float_format="{:+.1f}".format, na_rep="-"))


if __name__ == "__main__":
    main()
