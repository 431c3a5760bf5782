"""Which selector keeps the entries worth their bytes? Every selector on the same candidates, under three budgets.

    python benchmarks/selection.py [--json] [--seeds 21,22,23] [--budgets 128KiB,256KiB,512KiB]

Budgets are chosen to hold about one, two and four entries a class. Prints Last (mean accuracy on all tasks after the
last one) and forgetting, in percent, mean over seeds; beside them, label copy from the nearest of the same entries.
"""

from __future__ import annotations

import argparse
import json
import sys

import numpy as np
import pandas as pd

from inducekv import Backbone, InducedModel, InduceKVConfig
from inducekv.continual.methods.inducekv import InduceKV
from inducekv.continual.methods.nearest_neighbour import NearestNeighbour
from inducekv.continual.runner import run
from inducekv.continual.stream import Stream
from inducekv.embedded import path
from inducekv.embedded.tasks import demo_stream

SELECTORS = ("bilevel", "greedy", "facility_location", "herding", "reservoir", "random")


def one(backbone: Backbone, stream: Stream, selector: str, budget: str, seed: int) -> dict[str, object]:
    model = InducedModel.from_pretrained(backbone, config=InduceKVConfig(budget=budget, selector=selector, seed=seed))
    ours, copied = (result.to_dict() for result in run(stream, [InduceKV(model), NearestNeighbour(model)]))
    return {
        "selector": selector,
        "budget": budget,
        "seed": seed,
        "entries": len(model.memory),
        "last": ours["last"],
        "avg": ours["avg"],
        "forgetting": ours["forgetting"],
        "label_copy": copied["last"],
        "seconds": ours["learn_seconds"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seeds", default="21,22,23", help="streams and draws, comma-separated")
    parser.add_argument("--budgets", default="128KiB,256KiB,512KiB")
    parser.add_argument("--selectors", default=",".join(SELECTORS))
    options = parser.parse_args()
    backbone = Backbone.from_pretrained(path())
    runs = []
    for seed in map(int, options.seeds.split(",")):
        stream = Stream.from_tasks(demo_stream(seed))
        for budget in options.budgets.split(","):
            for selector in options.selectors.split(","):
                runs.append(one(backbone, stream, selector, budget, seed))
                print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    table = pd.DataFrame(runs)
    columns = ["last", "forgetting", "label_copy", "entries", "seconds"]
    means = table.groupby(["budget", "selector"], sort=False)[columns].mean()
    if options.json:
        print(json.dumps({"runs": runs, "means": means.reset_index().to_dict("records")}))
        return
    errors = table.groupby(["budget", "selector"], sort=False)["last"].sem()
    print(means.assign(standard_error=errors).round(1).to_string())
    wide = table.pivot_table(index="budget", columns="selector", values="last", sort=False)
    print("\nbilevel above random, points of Last:", dict(np.round(wide["bilevel"] - wide["random"], 1)))


if __name__ == "__main__":
    main()
