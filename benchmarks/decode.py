"""Does a compressed cache decode faster than the full one, and what does compressing cost?

    python benchmarks/decode.py [--json] [--prompt 4096] [--layers 24] [--budgets 0.1 0.2] [--repeats 15] [--prefills 1]
                                [--threads 1] [--clock cpu] [--dtype float32] [--device cpu] [--sizes onevision|tiny]

A random-weight decoder of LLaVA-OneVision-0.5B's dimensions reads a prompt of random embeddings once for each method,
which leaves each method's cache behind; then all caches decode in turns, one token each (A B C, C B A, ...), and the
token is cropped off again, so that every token finds the same cache. Ratios are to the full cache: of medians; the
spread is that of single rounds. Reading includes what compressing costs.

Layers are alike: `--layers` measures fewer of them where time is short. The time left out by that is none of the
cache's, so two ratios are given: of the decoder's layers alone, and with the output head (which is timed apart, and
takes the same time whatever the cache) beside all layers that the model has.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pandas as pd
import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from _overhead_measure import CLOCKS, pairs, ratio
from _overhead_model import TINY, Sizes, model_of
from inducekv import Backbone
from inducekv.compression import (
    LiveCompression,
    PrefixKV,
    RetentiveKV,
    RotateKV,
    ShiftKV,
    SphericalKV,
    WindowKV,
    cache_bytes,
)

SIZES = {"onevision": Sizes(), "tiny": TINY}
FULL = "full cache"
METHODS: dict[str, Callable[[float], LiveCompression]] = {
    "ShiftKV": ShiftKV,
    "PrefixKV(ShiftKV)": lambda budget: PrefixKV(ShiftKV(budget)),
    "WindowKV": WindowKV,
    "RetentiveKV": RetentiveKV,
    "SphericalKV": SphericalKV,
    "RotateKV 4 bits of ShiftKV": lambda budget: RotateKV(ShiftKV(budget), bits=4),
}
UNBUDGETED: dict[str, LiveCompression] = {"RotateKV, 4 bits": RotateKV(bits=4)}


def methods_of(budgets: list[float], names: list[str]) -> dict[str, LiveCompression | None]:
    """Everything that is measured, by name; the full cache first."""
    made: dict[str, LiveCompression | None] = {FULL: None}
    made |= {name: method for name, method in UNBUDGETED.items() if name in names}
    for budget in budgets:
        made |= {f"{name}, {100 * budget:g} %": METHODS[name](budget) for name in METHODS if name in names}
    return made


class Decoding:
    """A prompt that is read once for each method, and caches that decode a token as often as asked."""

    def __init__(self, backbone: Backbone, sizes: Sizes, tokens: int, seed: int = 0) -> None:
        self.model, self.decoder = backbone.model, backbone.text_model
        draw = torch.Generator().manual_seed(seed)
        numbers = torch.randn(1, tokens + 1, sizes.hidden, generator=draw) * 0.02  # about the size of embeddings
        self.prompt, self.next = numbers.to(backbone.device, backbone.dtype).split([tokens, 1], 1)

    def read(self, method: LiveCompression | None) -> Cache:
        cache = DynamicCache(config=self.decoder.config)
        with nullcontext() if method is None else method(self.model):
            self._forward(self.prompt, cache)
        return cache

    def decode(self, cache: Cache) -> None:
        """One token, which the cache forgets again."""
        self._forward(self.next, cache)
        for layer in cache.layers:
            layer.crop(-1)

    def _forward(self, embeddings: Tensor, cache: Cache) -> None:
        self.decoder(inputs_embeds=embeddings, past_key_values=cache, use_cache=True)


def measured(
    decoding: Decoding,
    methods: dict[str, LiveCompression | None],
    options: argparse.Namespace,
    say: Callable[[str], None],
) -> dict[str, dict[str, Any]]:
    """Seconds of reading and of a token, and bytes of the cache, for each method."""
    clock, device = CLOCKS[options.clock], decoding.prompt.device
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    found: dict[str, dict[str, Any]] = {name: {"read": [], "token": []} for name in methods}
    caches: dict[str, Cache] = {}

    def timed(name: str, what: str, work: Callable[[], Any]) -> Any:
        start = clock()
        result = work()
        wait()
        found[name][what].append(clock() - start)
        return result

    for number in range(options.prefills):
        for name, method in list(methods.items())[:: 1 if number % 2 == 0 else -1]:
            caches[name] = timed(name, "read", lambda method=method: decoding.read(method))
            found[name]["bytes"] = cache_bytes(caches[name])
            say(f"{name}: read in {found[name]['read'][-1]:.2f} s, {found[name]['bytes']:,} bytes")
    for number in range(options.repeats + 1):
        for name, method in list(methods.items())[:: 1 if number % 2 == 0 else -1]:
            with nullcontext() if method is None else method(decoding.model):
                timed(name, "token", lambda name=name: decoding.decode(caches[name]))
    for row in found.values():
        del row["token"][0]  # the first one warms up
    return found


def table_of(found: dict[str, dict[str, Any]], head: float, layers: int, measured_layers: int) -> pd.DataFrame:
    """One line a method: ratios to the full cache."""
    full, lines = found[FULL], []
    rest = head * measured_layers / layers  # of the head, the share that belongs to the layers measured
    for name, row in found.items():
        token, least, most = ratio(row["token"], full["token"])
        whole = (statistics.median(row["token"]) + rest) / (statistics.median(full["token"]) + rest)
        first = ratio(row["read"], full["read"])[0]
        line = {"method": name, "MiB": row["bytes"] / 2**20, "share %": 100 * row["bytes"] / full["bytes"]}
        line |= {"ms a token": 1000 * statistics.median(row["token"]), "token": token, "least": least, "most": most}
        lines.append({**line, "with head": whole, "reading": first})
    return pd.DataFrame(lines)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object with all raw numbers")
    parser.add_argument("--prompt", type=int, default=4096, help="tokens of the prompt")
    parser.add_argument("--layers", type=int, help="layers measured (default: all that the model has)")
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.1, 0.2])
    parser.add_argument("--methods", nargs="+", choices=[*METHODS, *UNBUDGETED], default=[*METHODS, *UNBUDGETED])
    parser.add_argument("--repeats", type=int, default=15, help="tokens decoded with each cache")
    parser.add_argument("--prefills", type=int, default=1, help="times that each method reads the prompt")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="cpu")
    parser.add_argument("--dtype", choices=("float32", "bfloat16", "float16"), default="float32")
    parser.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    parser.add_argument("--sizes", choices=tuple(SIZES), default="onevision")
    options = parser.parse_args(arguments)
    for name in ("prompt", "repeats", "prefills", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"{name} must be at least 1, got {getattr(options, name)}")
    if options.device == "cuda" and options.clock == "cpu":
        parser.error("the CPU's clock says nothing about a GPU; use --clock wall")
    torch.set_num_threads(options.threads)
    whole = SIZES[options.sizes]
    layers = options.layers or whole.layers
    sizes = dataclasses.replace(whole, layers=layers, vision_layers=1)
    backbone = model_of(sizes, options.device, getattr(torch, options.dtype))
    decoding = Decoding(backbone, sizes, options.prompt)
    say = (lambda line: None) if options.json else (lambda line: print(line, file=sys.stderr, flush=True))
    with torch.no_grad():
        head = pairs({"head": lambda: backbone.model.lm_head(decoding.next)}, 5, CLOCKS[options.clock], backbone.device)
        found = measured(decoding, methods_of(options.budgets, options.methods), options, say)
    table = table_of(found, statistics.median(head["head"]), whole.layers, layers)
    if options.json:
        print(json.dumps({"table": table.to_dict("records"), "raw": found, "head": head["head"], "layers": layers}))
        return
    print(f"prompt of {options.prompt} tokens, {layers} layers of {whole.layers}, {options.dtype} on {options.device}")
    print(f"output head: {1000 * statistics.median(head['head']):.1f} ms a token")
    print(table.round(3).to_string(index=False))


if __name__ == "__main__":
    main()
