"""What of an entry must be kept, in how many bits, and how should retrieval weights enter attention?

    python benchmarks/payload.py [--json] [--seed 10] [--per-class 3]

One task of each kind on the embedded model, the same examples under every setting, nothing selected away: only the
payload and the weighting differ. Prints accuracy in percent and bytes an entry; label copy of the nearest entry below.
"""

from __future__ import annotations

import argparse
import json
import sys

import pandas as pd

from inducekv import Backbone, InducedModel, InduceKVConfig
from inducekv.continual.graders import accuracy
from inducekv.continual.methods.nearest_neighbour import NearestNeighbour
from inducekv.embedded import path
from inducekv.embedded.tasks import Task, alphabet, attribute, counts, digits, gauges, pairs

DEFAULT = "keep-answer, int4, log"
SETTINGS: dict[str, dict[str, object]] = {
    DEFAULT: {},
    "keep-answer, fp16, log": {"payload_dtype": "float16"},
    "keep-answer, int8, log": {"payload_dtype": "int8"},
    "keep-answer, int3, log": {"payload_dtype": "int3"},
    "keep-answer, int2, log": {"payload_dtype": "int2"},
    "keep-answer + 1 pooled, int4, log": {"payload_tokens": 1},
    "keep-answer + 4 pooled, int4, log": {"payload_tokens": 4},
    "whole, fp16, log": {"payload": "none", "payload_dtype": "float16"},
    "whole, int4, log": {"payload": "none"},
    "mean pooling to 2 (paper), fp16, log": {"payload": "mean_pool", "payload_tokens": 2, "payload_dtype": "float16"},
    "mean pooling to 8 (paper), fp16, log": {"payload": "mean_pool", "payload_tokens": 8, "payload_dtype": "float16"},
    "keep-answer, int4, none": {"weighting": "none"},
    "keep-answer, int4, sqrt / max": {"weighting": "sqrt_max"},
    "keep-answer, int4, sqrt (paper)": {"weighting": "sqrt"},
    "keep-answer, int4, log, top 4": {"top_k": 4},
    "keep-answer, int4, log, top 16": {"top_k": 16},
    "keep-answer, int4, log, key centred": {"key_space": "centred"},
    "keep-answer, int4, log, in flight": {"retrieval": "in_flight"},
}


def tasks(seed: int, per_class: int) -> dict[str, Task]:
    return {
        "alphabet": alphabet(seed, classes=12, train=per_class, test=6),
        "digits": digits(seed, train=per_class, test=8),
        "colour-shape": pairs(seed, train=per_class, test=80),
        "gauges": gauges(seed, train=3 * per_class, test=80),
        "counts": counts(seed, train=3 * per_class, test=80),
        "count called": attribute(seed, "count", train=16 * per_class, test=80),
        "place called": attribute(seed, "place", train=16 * per_class, test=80),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seed", type=int, default=10)
    parser.add_argument("--per-class", type=int, default=3)
    parser.add_argument("--model", default=str(path()))
    options = parser.parse_args()
    backbone = Backbone.from_pretrained(options.model)
    rows = []
    for name, fields in SETTINGS.items():
        config = InduceKVConfig(**{"budget": "64MiB", "abstain": False, **fields})  # type: ignore[arg-type]
        row: dict[str, object] = {"setting": name}
        copied: dict[str, object] = {"setting": "  label copy"}
        entries = nbytes = 0
        for task, (train, test) in tasks(options.seed, options.per_class).items():
            model = InducedModel.from_pretrained(backbone, config=config)
            model.learn(train, task=task)
            expected = [example.answer or "" for example in test]
            row[task] = accuracy([a.text for a in model.answer_all(test, max_new_tokens=12)], expected)
            copied[task] = accuracy(NearestNeighbour(model).answer(test), expected)
            entries, nbytes = entries + len(model.memory), nbytes + model.memory.nbytes
        row["bytes an entry"] = nbytes / entries
        rows.append(row)
        if name == DEFAULT:
            rows.append(copied)
        print(json.dumps(row), file=sys.stderr, flush=True)
    table = pd.DataFrame(rows).set_index("setting")
    table.insert(0, "mean", table.drop(columns="bytes an entry").mean(axis=1))
    print(table.reset_index().to_json(orient="records") if options.json else table.round(1).to_string())


if __name__ == "__main__":
    main()
