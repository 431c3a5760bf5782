"""How good is a compressed cache when what mattered is only asked afterwards?

    python benchmarks/compression.py [--json] [--seeds 0 1] [--limit 10] [--methods ...] [--peer .venv-peers/bin/python]

The embedded model reads a conversation of many pictures; its cache is compressed; only then comes the question, about
one of them (`_compression_task.py`). The same prompts for all, and for kvpress's presses in an environment of
their own (`peers/requirements.txt`). Prints percent of the answers that are right, with the standard error over
conversations, and the mean bytes of the compressed prompt (`cache_bytes`: the model's float32, positions and states
included).

A budget is a share of the prompt's tokens. The "same bytes" row keeps as many tokens as fit what RetentiveKV took.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from rich.console import Console

from _compression_task import TASKS, Prompt, Reading, prompts, read
from inducekv import Backbone
from inducekv.compression import (
    AttentionSum,
    LiveCompression,
    PrefixKV,
    RetentiveKV,
    RotateKV,
    ShiftKV,
    SphericalKV,
    WindowKV,
    cache_bytes,
)
from inducekv.embedded import path
from inducekv.progress import SILENT, BarProgress, Progress

HERE = Path(__file__).parent
BUDGETS = (0.05, 0.1, 0.2, 0.5)
FULL = "full cache"
SAME_BYTES = "RetentiveKV's score, plain, same bytes"

UNBUDGETED: dict[str, LiveCompression] = {"RotateKV, 4 bits": RotateKV(bits=4), "RotateKV, 2 bits": RotateKV(bits=2)}
"""Methods that keep every token: one row each."""

METHODS: dict[str, Callable[[float], LiveCompression]] = {
    "ShiftKV": ShiftKV,
    "ShiftKV, unlike 0.5": lambda budget: ShiftKV(budget, unlike=0.5),
    "PrefixKV(ShiftKV)": lambda budget: PrefixKV(ShiftKV(budget)),
    "PrefixKV": lambda budget: PrefixKV(AttentionSum(budget)),
    "AttentionSum": AttentionSum,
    "WindowKV": WindowKV,
    "SphericalKV": SphericalKV,
    "RotateKV 4 bits of ShiftKV, 3 x tokens": lambda budget: RotateKV(ShiftKV(min(1.0, 3 * budget)), bits=4),
    "the same of ShiftKV, unlike 0.5": lambda budget: RotateKV(ShiftKV(min(1.0, 3 * budget), unlike=0.5), bits=4),
    "RetentiveKV": RetentiveKV,
    "RetentiveKV, moments": lambda budget: RetentiveKV(budget, readout="moments"),
    "RetentiveKV, elu": lambda budget: RetentiveKV(budget, readout="elu"),
    "RetentiveKV's score, plain": lambda budget: RetentiveKV(budget, readout="none"),
}
"""Made for a share of the tokens. Four bits, scales and exact sinks of three times the tokens take about the bytes of
the budget's tokens in float32; in a 16-bit model they would take more than those."""

ALL = [FULL, *UNBUDGETED, *METHODS, SAME_BYTES]


def opener(backbone: Backbone, method: LiveCompression | None) -> Callable[[], AbstractContextManager[Any]]:
    return nullcontext if method is None else lambda: method(backbone.model)


def same_bytes(backbone: Backbone, prompt: Prompt, full: int, allowed: int) -> LiveCompression | None:
    """Plain eviction that takes at most `allowed` bytes, positions included; None: the whole cache does."""
    config = backbone.text_model.config
    token = full / prompt.tokens + 4 * config.num_hidden_layers * config.num_key_value_heads
    tokens = int(allowed / token)
    return None if allowed >= full else RetentiveKV(max(1, tokens), readout="none")


def measure(
    backbone: Backbone,
    task: str,
    seed: int,
    limit: int,
    budgets: list[float],
    names: list[str],
    progress: Progress,
    log: bool = False,
) -> tuple[list[dict[str, Any]], list[str]]:
    """Rows of one task and seed, and the digests of its prompts."""
    asked = list(prompts(backbone.processor, task, seed, limit))
    rows: list[dict[str, Any]] = []

    def run(name: str, budget: float | None, method: Callable[[int], LiveCompression | None]) -> list[int]:
        progress.start(f"{task}, seed {seed}: {name} {budget or ''}", len(asked))
        got: list[Reading] = []
        for i, prompt in enumerate(asked):
            opened = opener(backbone, method(i))
            got.append(read(backbone.model, backbone.processor.tokenizer, prompt, opened, cache_bytes))
            progress.advance()
        row: dict[str, Any] = {"task": task, "seed": seed, "method": name, "budget": budget}
        rows.append({**row, **{key: [getattr(g, key) for g in got] for key in ("right", "asked", "bytes")}})
        print(json.dumps(rows[-1]), file=sys.stderr, flush=True) if log else None
        return rows[-1]["bytes"]

    full = run(FULL, None, lambda i: None)
    for name, made in UNBUDGETED.items():
        if name in names:
            run(name, None, lambda i, made=made: made)  # type: ignore[misc]
    for budget in budgets:
        taken: list[int] = []
        for name, make in METHODS.items():
            if name in names:
                nbytes = run(name, budget, lambda i, make=make, budget=budget: make(budget))  # type: ignore[misc]
                taken = nbytes if name == "RetentiveKV" else taken
        if SAME_BYTES in names and taken:
            run(SAME_BYTES, budget, lambda i, taken=taken: same_bytes(backbone, asked[i], full[i], taken[i]))
    return rows, [prompt.digest() for prompt in asked]


def peer_rows(
    python: Path, options: argparse.Namespace
) -> tuple[list[dict[str, Any]], dict[tuple[str, int], list[str]]]:
    """Rows of kvpress's presses, and the digests of the prompts they were given.

    Raises:
        RuntimeError: the peers' script failed; its last words are in the message.
    """
    command = [
        str(python),
        str(HERE / "peers" / "kvpress_peer.py"),
        "--model",
        options.model,
        "--tasks",
        *options.tasks,
    ]
    command += ["--seeds", *map(str, options.seeds), "--limit", str(options.limit)]
    command += ["--budgets", *map(str, options.budgets)]
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent / "src")}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        raise RuntimeError(f"{python} failed on the peers' presses:\n{done.stderr[-2000:]}")
    lines = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    digests = {(line["task"], line["seed"]): line["digests"] for line in lines if "digests" in line}
    return [line for line in lines if "digests" not in line], digests


def table_of(rows: list[dict[str, Any]]) -> pd.DataFrame:
    """One line a task, budget and method: percent right, standard error over prompts, mean bytes and their share."""
    full = {(r["task"], r["seed"]): np.mean(r["bytes"]) for r in rows if r["method"] == FULL}
    lines = []
    grouped: dict[tuple[str, Any, str], list[dict[str, Any]]] = {}
    for row in rows:
        grouped.setdefault((row["task"], row["budget"], row["method"]), []).append(row)
    for (task, budget, method), group in grouped.items():
        right, asked, nbytes = (np.concatenate([r[key] for r in group]) for key in ("right", "asked", "bytes"))
        shares = right / asked
        error = shares.std(ddof=1) / len(shares) ** 0.5 if len(shares) > 1 else float("nan")
        whole = np.mean([full[task, r["seed"]] for r in group])
        line = {"task": task, "budget": budget, "method": method, "accuracy": 100 * right.sum() / asked.sum()}
        lines.append(
            {
                **line,
                "error": 100 * error,
                "bytes": nbytes.mean(),
                "share": 100 * nbytes.mean() / whole,
                "asked": asked.sum(),
            }
        )
    return pd.DataFrame(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="one JSON object: the table, and what every prompt gave")
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1])
    parser.add_argument("--limit", type=int, default=10, help="conversations a task and seed")
    parser.add_argument("--budgets", nargs="+", type=float, default=list(BUDGETS))
    parser.add_argument("--methods", nargs="+", choices=ALL, default=ALL)
    parser.add_argument("--model", default=str(path()))
    parser.add_argument("--peer", type=Path, default=HERE.parent / ".venv-peers" / "bin" / "python")
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--log", action="store_true", help="each row on standard error as soon as it is there")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    backbone = Backbone.from_pretrained(options.model)
    console = Console(stderr=True)
    progress = SILENT if options.quiet else BarProgress(console)
    rows, digests = [], {}
    for task in options.tasks:
        for seed in options.seeds:
            made, digests[task, seed] = measure(
                backbone, task, seed, options.limit, options.budgets, options.methods, progress, options.log
            )
            rows += made
    progress.stop()
    peers = not options.no_peers and options.peer.exists()
    if peers:
        theirs, their_digests = peer_rows(options.peer, options)
        if their_digests != digests:
            raise RuntimeError("the peers were given other prompts: their processor makes other inputs")
        rows += theirs
    elif not options.no_peers and not options.quiet:
        console.print(f"{options.peer} is missing: no peers (benchmarks/peers/requirements.txt)", highlight=False)
    table = table_of(rows)
    if options.json:
        print(json.dumps({"table": table.to_dict("records"), "rows": rows, "peers": peers}))
        return
    for task, part in table.groupby("task", sort=False):
        print(f"\n{task}")
        rounded = part.drop(columns="task").round({"accuracy": 1, "error": 1, "bytes": 0, "share": 1})
        print(rounded.to_string(index=False, formatters={"budget": _percent}, na_rep=""))


def _percent(budget: float | None) -> str:
    return "" if budget is None or np.isnan(budget) else f"{100 * budget:.0f} %"


if __name__ == "__main__":
    main()
