"""What does a number format of the payloads cost in accuracy, and what do the bytes it saves buy?

    python benchmarks/payload_formats.py [--stream embedded/vqa] [--seed 7] [--budgets 256KiB,4MiB] [--formats int4]

A stream learned by herding without calibration, in every format under every budget; examples are encoded once. Prints
Last (mean accuracy over all tests after the last task) in percent and how many entries were held. Where a budget holds
all entries, the formats alone differ.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from typing import Any, get_args

import numpy as np
import pandas as pd

from inducekv import Backbone, InducedModel, InduceKVConfig
from inducekv.config import PayloadDtype
from inducekv.continual.methods.inducekv import InduceKV
from inducekv.continual.stream import Stream
from inducekv.continual.streams import stream_named
from inducekv.embedded import path
from inducekv.encoded import Encoded
from inducekv.examples import Example


class Encoder(Backbone):
    """A backbone that encodes the same examples once."""

    def encode(self, examples: Sequence[Example], **options: Any) -> list[Encoded]:
        known: dict[Any, list[Encoded]] = self.__dict__.setdefault("known", {})
        names = (tuple(example.identifier for example in examples), repr(options))
        if names not in known:
            known[names] = super().encode(examples, **options)
        return known[names]


def last(backbone: Backbone, stream: Stream, tasks: int, config: InduceKVConfig) -> tuple[float, int]:
    """Last in percent, and the entries held."""
    method = InduceKV(InducedModel.from_pretrained(backbone, config=config))
    experiences = stream.experiences[:tasks]
    for experience in experiences:
        method.learn(experience if stream.task_labels == "train" else experience.masked())
    scores = [np.mean(e.grader.scores(method.answer(e.test), e.test)) for e in experiences]
    return 100 * float(np.mean(scores)), len(method.model.memory)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--stream", default="embedded/vqa")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--budgets", default="256KiB,4MiB")
    parser.add_argument("--formats", default=",".join(get_args(PayloadDtype)))
    parser.add_argument("--tasks", type=int, default=None, help="learn only the first so many")
    options = parser.parse_args(arguments)
    backbone, stream = Encoder.from_pretrained(path()), stream_named(options.stream, seed=options.seed)
    rows = []
    for name in options.formats.split(","):
        row: dict[str, object] = {"format": name}
        for budget in options.budgets.split(","):
            config = InduceKVConfig.fast(seed=options.seed, budget=budget, payload_dtype=name)
            row[f"Last, {budget}"], row[f"entries, {budget}"] = last(backbone, stream, options.tasks, config)
        rows.append(row)
        print(json.dumps(row), file=sys.stderr, flush=True)
    table = pd.DataFrame(rows).set_index("format")
    print(table.reset_index().to_json(orient="records") if options.json else table.round(1).to_string())


if __name__ == "__main__":
    main()
