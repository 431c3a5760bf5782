"""kvpress's presses on the prompts of `benchmarks/compression.py`: started by it, in the environment of the peers.

    .venv-peers/bin/python benchmarks/peers/kvpress_peer.py --tasks naming --seeds 0 --limit 2 --budgets 0.2

Prints one JSON object a line: a row, or (first of a seed) the digests of the prompts.

The presses run by kvpress's own hooks and compress its own way; they keep as many tokens as our methods do. kvpress
looks for the decoder as `model.model.language_model`; Idefics3 calls it `text_model`, and `with press(model)` raises
AttributeError there. So a press is given an object that holds the decoder under the name it looks for. Positions go on
from the prompt's true end, as in kvpress's own pipeline.
"""

from __future__ import annotations

import argparse
import json
import sys
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent.parent))

import transformers
from kvpress import ExpectedAttentionPress, KeyDiffPress, SnapKVPress, StreamingLLMPress, TOVAPress
from transformers import AutoModelForImageTextToText, AutoProcessor, Cache

from _compression_task import TASKS, prompts, read

PRESSES = {
    "SnapKV": SnapKVPress,
    "SnapKV, window 8": lambda ratio: SnapKVPress(ratio, window_size=8),
    "ExpectedAttention": ExpectedAttentionPress,
    "KeyDiff": KeyDiffPress,
    "StreamingLLM": StreamingLLMPress,
    "TOVA": TOVAPress,
}
"""Defaults of kvpress; SnapKV's window of 64 is a third of these prompts, so it is also given a smaller one."""


def nbytes(cache: Cache) -> int:
    return sum(x.numel() * x.element_size() for layer in cache.layers for x in (layer.keys, layer.values))


def named_as_kvpress_wants(model: Any) -> Any:
    return SimpleNamespace(model=SimpleNamespace(language_model=model.model.text_model), config=model.config)


def ratio_for(budget: float, tokens: int) -> float:
    """The ratio at which kvpress keeps as many tokens as our budget allows."""
    kept = max(1, int(budget * tokens + 1e-9))
    return 1 - (kept + 0.5) / tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--tasks", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--seeds", nargs="+", type=int, default=[0])
    parser.add_argument("--limit", type=int, default=20)
    parser.add_argument("--budgets", nargs="+", type=float, default=[0.05, 0.1, 0.2, 0.5])
    options = parser.parse_args()
    torch.set_num_threads(1)
    model = AutoModelForImageTextToText.from_pretrained(options.model).eval()
    processor = AutoProcessor.from_pretrained(options.model)
    for task in options.tasks:
        for seed in options.seeds:
            asked = list(prompts(processor, task, seed, options.limit))
            digests = [prompt.digest() for prompt in asked]
            common = {"task": task, "seed": seed}
            print(json.dumps({**common, "digests": digests, "transformers": transformers.__version__}), flush=True)
            for budget in [None, *options.budgets]:
                for name, press in PRESSES.items() if budget else [("full cache (peer)", None)]:
                    row = {**common, "method": name, "budget": budget, "right": [], "asked": [], "bytes": []}
                    for prompt in asked:

                        def opened(press: Any = press, budget: Any = budget, prompt: Any = prompt) -> Any:
                            if press is None:
                                return nullcontext()
                            return press(ratio_for(budget, prompt.tokens))(named_as_kvpress_wants(model))

                        got = read(model, processor.tokenizer, prompt, opened, nbytes)
                        for key in ("right", "asked", "bytes"):
                            row[key].append(getattr(got, key))
                    print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
