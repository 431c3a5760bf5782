"""What does a memory cost? Time to first token, decoding, retrieval and peak memory, beside the plain model.

    python benchmarks/overhead.py [--json] [--repeats 5] [--threads N] [--device cpu|cuda] [--dtype float32]
                                  [--clock wall|cpu] [--sizes onevision|tiny]
                                  [--parts first,two_pass,prompt,peft,retrieval,peak]

A random-weight model of LLaVA-OneVision-0.5B's dimensions answers one picture (729 tokens) and 32 text tokens with 32
tokens. Everything is measured in one run, interleaved (A B C, C B A, ...); ratios are of medians, the spread is the
least and the largest ratio of one repeat. Memories are random entries, read with the library's defaults.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from peft import CartridgeConfig, PrefixTuningConfig, get_peft_model
from rich.console import Console
from rich.table import Table
from torch.nn.functional import normalize

from _overhead_measure import CLOCKS, Timed, Way, interleaved, pairs, peak_bytes, ratio
from _overhead_model import TINY, Flops, Sizes, induced, inputs_of, many_keys, memory_of, model_of
from inducekv import Backbone
from inducekv.lookup import Reading

PARTS = ("first", "two_pass", "prompt", "peft", "retrieval", "peak")
SIZES = {"onevision": Sizes(), "tiny": TINY}
PLAIN, IN_FLIGHT, TWO_PASS, PROMPT = "plain", "in flight, top-k", "two passes, top-k", "examples as a prompt"
ALL_IN_FLIGHT, ALL_TWO_PASS = "in flight, all", "two passes, all"
FIRST, TOKEN = "time to first token", "decode time a token"


def ways_of(sizes: Sizes, backbone: Backbone, parts: list[str]) -> dict[str, Way]:
    """Everything that generates, by name."""
    asked, model = inputs_of(sizes, backbone), backbone.model
    ways = {PLAIN: Way(model, asked, sizes.new_tokens)}
    every = sizes.all_tokens // sizes.entry_tokens
    for part, name, entries, changes in (
        ("first", IN_FLIGHT, sizes.entries, {}),
        ("first", ALL_IN_FLIGHT, every, {"top_k": None}),
        ("two_pass", TWO_PASS, sizes.entries, {"retrieval": "two_pass"}),
        ("two_pass", ALL_TWO_PASS, every, {"top_k": None, "retrieval": "two_pass"}),
    ):
        if part in parts:
            ways[name] = Way(model, asked, sizes.new_tokens, induced(sizes, backbone, entries, **changes).attached)
    if "peft" in parts:
        for count in (sizes.top_k * sizes.entry_tokens, sizes.all_tokens):
            for name, made in (("PEFT Cartridge", CartridgeConfig), ("PEFT prefix tuning", PrefixTuningConfig)):
                config = made(task_type="CAUSAL_LM", num_virtual_tokens=count, inference_mode=True)
                ways[f"{name}, {count}"] = Way(get_peft_model(model, config).eval(), asked, sizes.new_tokens)
    if "prompt" in parts:
        ways[PROMPT] = Way(model, inputs_of(sizes, backbone, images=sizes.top_k + 1), 1)
    return ways


def retrieval_seconds(sizes: Sizes, backbone: Backbone, repeats: int, clock: Any) -> dict[str, list[float]]:
    """Looking up one question among many keys, beside one decoder layer's pass over the prompt."""
    reading = Reading(many_keys(sizes, backbone), induced(sizes, backbone, 1).config)
    query = normalize(torch.randn(1, reading.memory.layout.key_dim, device=backbone.device), dim=-1)
    hidden = torch.randn(1, sizes.prompt, sizes.hidden, device=backbone.device, dtype=backbone.dtype)
    decoder = backbone.text_model
    positions = torch.arange(sizes.prompt, device=backbone.device)[None]
    turned = decoder.rotary_emb(hidden, positions)
    works = {
        "retrieval": lambda: reading.retrieved(query),
        "one decoder layer": lambda: decoder.layers[0](
            hidden, attention_mask=None, position_ids=positions, position_embeddings=turned
        ),
    }
    return pairs(works, max(5, repeats), clock, backbone.device)


def peak_here(sizes: Sizes, options: argparse.Namespace) -> dict[str, int]:
    """Peak memory of a batch, in this process. The memories are built either way: what is counted is reading them."""
    backbone = model_of(sizes, options.device, getattr(torch, options.dtype))
    model = induced(sizes, backbone, 1)
    memories = [memory_of(sizes, backbone, model.config, sizes.entries, seed) for seed in range(sizes.batch)]
    way = Way(backbone.model, inputs_of(sizes, backbone, rows=sizes.batch), 2)
    payload = 0
    if options.peak == "memory":
        layout, tokens = model.memory.layout, sizes.top_k * sizes.entry_tokens
        width = {2: "float16", 4: "float32"}[backbone.dtype.itemsize]
        payload = sizes.batch * layout.payload_nbytes(tokens, width)
        way = Way(way.model, way.inputs, way.tokens, lambda: model.attached(memories))
    if backbone.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    before = peak_bytes(backbone.device)
    with torch.no_grad(), way.opened():
        way.model.generate(**way.inputs, max_new_tokens=way.tokens, do_sample=False)
    return {"peak": peak_bytes(backbone.device), "before": before, "payload": payload}


def peaks_of(options: argparse.Namespace) -> dict[str, dict[str, int]]:
    """Peak memory with and without memories, each in a process of its own."""
    found = {}
    for kind in ("plain", "memory"):
        command = [sys.executable, str(Path(__file__).resolve()), "--peak", kind, "--threads", str(options.threads)]
        command += ["--device", options.device, "--dtype", options.dtype, "--sizes", options.sizes]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the process that measures peak memory failed:\n{done.stderr}")
        found[kind] = json.loads(done.stdout.splitlines()[-1])
    return found


def rows_of(
    sizes: Sizes,
    timed: dict[str, Timed],
    seconds: dict[str, list[float]],
    peaks: dict[str, dict[str, int]],
    layers: int,
) -> list[dict[str, Any]]:
    """The table: measured ratio, least and largest of one repeat, target."""
    rows: list[dict[str, Any]] = []

    def row(what: str, against: str, above: list[float], below: list[float], target: float | None) -> None:
        middle, least, most = ratio(above, below)
        rows.append({"what": what, "against": against, "ratio": middle, "least": least, "most": most, "target": target})

    plain = timed[PLAIN]
    for name, way in timed.items():
        targets: tuple[float | None, float | None] = (1.08, 1.05) if name == IN_FLIGHT else (None, None)
        if name == ALL_IN_FLIGHT:
            targets = (1.15 * bound_of(sizes, layers), None)
        if name not in (PLAIN, PROMPT):
            row(f"{FIRST}, {name}", PLAIN, way.first, plain.first, targets[0])
            row(f"{TOKEN}, {name}", PLAIN, way.token, plain.token, targets[1])
    if PROMPT in timed:
        for name, target in ((IN_FLIGHT, 0.25), (PLAIN, None)):
            if name in timed:
                row(f"{FIRST}, {name}", PROMPT, timed[name].first, timed[PROMPT].first, target)
    if seconds:
        keys = f"retrieval among {sizes.retrieval_keys:,} keys"
        row(keys, "one decoder layer", seconds["retrieval"], seconds["one decoder layer"], 1.0)
    if peaks:
        with_memory, without = peaks["memory"], peaks["plain"]
        less = with_memory["peak"] - with_memory["payload"]
        row(f"peak memory, {sizes.batch} rows, less payloads", "without", [less], [without["peak"]], 1.05)
    return rows


def bound_of(sizes: Sizes, layers: int) -> float:
    """The least ratio that arithmetic allows for reading all memory tokens in `layers` layers."""
    return 1 + Flops.of_memory(sizes, sizes.all_tokens, layers) / Flops.of_prefill(sizes).total


def derivation(sizes: Sizes, layers: int) -> list[str]:
    """Where the arithmetic bound comes from, in words and numbers."""
    flops, bound = Flops.of_prefill(sizes), bound_of(sizes, layers)
    lines = [f"  {part}: {count / 1e9:,.1f} GFLOP" for part, count in flops.parts.items()]
    extra = Flops.of_memory(sizes, sizes.all_tokens, layers)
    return [
        f"plain prefill of {sizes.prompt} tokens: {flops.total / 1e9:,.1f} GFLOP",
        *lines,
        f"attention over {sizes.all_tokens:,} memory tokens in {layers} layers: "
        f"4 x {sizes.prompt} x {sizes.all_tokens:,} x {sizes.hidden} x {layers} = {extra / 1e9:,.1f} GFLOP",
        f"bound: 1 + {extra / 1e9:,.1f} / {flops.total / 1e9:,.1f} = {bound:.3f} times plain; "
        f"target 1.15 x that = {1.15 * bound:.3f}",
    ]


def show(report: dict[str, Any], console: Console) -> None:
    table = Table("what", "against", "ratio", "spread", "target", "", title=report["title"])
    for row in report["rows"]:
        met = "" if row["target"] is None else "met" if row["ratio"] <= row["target"] else "missed"
        target = "" if row["target"] is None else f"{row['target']:.3f}"
        spread = f"{row['least']:.3f} .. {row['most']:.3f}"
        table.add_row(row["what"], row["against"], f"{row['ratio']:.3f}", spread, target, met)
    console.print(table)
    for line in report["bound"]:
        console.print(line, highlight=False)
    for name, way in report["timed"].items():
        token = f", {1000 * statistics.median(way['token']):.1f} ms a token" if way["token"] else ""
        console.print(f"{name}: first token {1000 * statistics.median(way['first']):.1f} ms{token}", highlight=False)
    for name, times in report["seconds"].items():
        console.print(f"{name}: {1000 * statistics.median(times):.2f} ms", highlight=False)
    for name, peak in report["peaks"].items():
        numbers = ", ".join(f"{key} {value / 2**20:,.0f} MiB" for key, value in peak.items())
        console.print(f"peak memory, {name}: {numbers}", highlight=False)


def parsed(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object with all raw numbers")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="wall", help="cpu: for one thread of a shared CPU")
    parser.add_argument("--parts", default=",".join(PARTS), help="what to measure, with commas")
    parser.add_argument("--sizes", choices=tuple(SIZES), default="onevision")
    parser.add_argument("--peak", choices=("plain", "memory"), help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    options.parts = options.parts.split(",")
    if unknown := sorted(set(options.parts) - set(PARTS)):
        parser.error(f"unknown part {unknown[0]!r}; parts: {', '.join(PARTS)}")
    if options.repeats < 1 or options.threads < 1:
        parser.error(f"repeats and threads must be at least 1, got {options.repeats} and {options.threads}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.error("this torch sees no GPU; use --device cpu")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parsed(arguments)
    torch.set_num_threads(options.threads)
    warnings.filterwarnings("ignore", message=".*torchvision.*")
    sizes, clock = SIZES[options.sizes], CLOCKS[options.clock]
    if options.peak:
        print(json.dumps(peak_here(sizes, options)))
        return
    quiet = Console(stderr=True)
    peaks = peaks_of(options) if "peak" in options.parts else {}
    backbone = model_of(sizes, options.device, getattr(torch, options.dtype))
    layers = len(induced(sizes, backbone, 1).memory.layout.layers)
    ways = ways_of(sizes, backbone, options.parts)
    timed = interleaved(ways, options.repeats, clock, lambda line: quiet.print(line, highlight=False))
    seconds = retrieval_seconds(sizes, backbone, options.repeats, clock) if "retrieval" in options.parts else {}
    report = {
        "title": f"{options.sizes} sizes, {options.device}, {options.dtype}, {options.threads} threads, "
        f"{options.clock} time, {options.repeats} repeats",
        "sizes": asdict(sizes),
        "rows": rows_of(sizes, timed, seconds, peaks, layers),
        "bound": derivation(sizes, layers),
        "flops": Flops.of_prefill(sizes).parts,
        "timed": {name: asdict(way) for name, way in timed.items()},
        "seconds": seconds,
        "peaks": peaks,
        "torch": torch.__version__,
    }
    if options.json:
        print(json.dumps(report))
    else:
        show(report, Console(width=160))


if __name__ == "__main__":
    main()
