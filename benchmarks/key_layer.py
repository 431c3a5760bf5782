"""Where should the retrieval key be taken, and what does it cost to let only the layers above it read memory?

    python benchmarks/key_layer.py [--json] [--seeds 30,31] [--budget 256KiB] [--per-class 3]

On the embedded model, for every key layer, in flight and in two passes: Last on the demo stream under the budget
(percent; mean over the seeds) with its label copy (what the key alone is worth), entries that fit; and accuracy on one
task of each kind with nothing selected away.
"""

from __future__ import annotations

import argparse
import json
import sys

import pandas as pd

from inducekv import Backbone, InducedModel, InduceKVConfig
from inducekv.bytes import parse_bytes
from inducekv.continual.demo import stream_of_demo
from inducekv.continual.graders import accuracy
from inducekv.continual.methods.inducekv import InduceKV
from inducekv.continual.methods.nearest_neighbour import NearestNeighbour
from inducekv.continual.metrics import last
from inducekv.continual.runner import run
from inducekv.embedded import path
from payload import tasks  # the tasks of the payload benchmark, beside this file


def single_tasks(backbone: Backbone, config: InduceKVConfig, seed: int, per_class: int) -> dict[str, float]:
    """Accuracy in percent on one task of each kind, each in a memory of its own that holds everything."""
    found = {}
    for task, (train, test) in tasks(seed, per_class).items():
        model = InducedModel.from_pretrained(backbone, config=config.replace(budget="64MiB", abstain=False))
        model.learn(train, task=task)
        answers = [answer.text for answer in model.answer_all(test, max_new_tokens=12)]
        found[task] = accuracy(answers, [example.answer or "" for example in test])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seeds", default="30,31", help="of the demo stream; none: single tasks only")
    parser.add_argument("--budget", default="256KiB")
    parser.add_argument("--per-class", type=int, default=3)
    parser.add_argument("--layers", help="key layers to try, with commas; all by default")
    parser.add_argument("--model", default=str(path()))
    options = parser.parse_args()
    backbone = Backbone.from_pretrained(options.model)
    layers = range(backbone.layers + 1)
    if options.layers:
        layers = [int(layer) for layer in options.layers.split(",")]
    seeds = [int(seed) for seed in options.seeds.split(",") if seed]
    rows = []
    for key_layer in layers:
        for retrieval in ("two_pass", "in_flight"):
            if retrieval == "in_flight" and key_layer == backbone.layers:
                continue
            config = InduceKVConfig(
                budget=parse_bytes(options.budget),
                key_layer=key_layer,
                retrieval=retrieval,  # type: ignore[arg-type]
            )
            row: dict[str, object] = {"key layer": key_layer, "retrieval": retrieval}
            single = single_tasks(backbone, config, seed=10, per_class=options.per_class)
            row["single tasks"] = sum(single.values()) / len(single)
            row |= single
            for seed in seeds:
                model = InducedModel.from_pretrained(backbone, config=config.replace(seed=seed))
                memory, copy = run(stream_of_demo(seed), [InduceKV(model), NearestNeighbour(model)])
                row[f"Last, seed {seed}"], row[f"label copy, seed {seed}"] = last(memory.matrix), last(copy.matrix)
                row[f"entries, seed {seed}"] = len(model.memory)
            rows.append(row)
            print(json.dumps(row), file=sys.stderr, flush=True)
    table = pd.DataFrame(rows)
    print(table.to_json(orient="records") if options.json else table.round(1).to_string(index=False))


if __name__ == "__main__":
    main()
