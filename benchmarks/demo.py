"""The demo's stream over several seeds: every method at equal bytes, and what a full memory does to the base skills.

    python benchmarks/demo.py [--json] [--seeds 21,22,23] [--budget 256KiB]

Prints Avg, Last and forgetting of each method, mean over seeds, and the accuracy on the embedded model's base skills
without and with the memory of the whole stream attached (no harm: they should be equal).
"""

from __future__ import annotations

import argparse
import json
import sys

import pandas as pd

from inducekv import Backbone
from inducekv.bytes import parse_bytes
from inducekv.continual.demo import methods_of_demo, stream_of_demo
from inducekv.continual.graders import accuracy
from inducekv.continual.runner import run
from inducekv.embedded import path
from inducekv.embedded.tasks import base_skills


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seeds", default="21,22,23")
    parser.add_argument("--budget", default="256KiB")
    parser.add_argument("--questions", type=int, default=600, help="base-skill questions a seed")
    options = parser.parse_args()
    backbone = Backbone.from_pretrained(path())
    rows, harm = [], []
    for seed in map(int, options.seeds.split(",")):
        methods, model = methods_of_demo(backbone, parse_bytes(options.budget), seed)
        for result in run(stream_of_demo(seed), methods):
            rows.append({"seed": seed, "method": result.name, "final": result.matrix[-1].tolist(), **result.to_dict()})
            print(json.dumps(rows[-1]), file=sys.stderr, flush=True)
        base = base_skills(options.questions, seed)
        expected = [example.answer or "" for example in base]
        plain = accuracy(backbone.generate(base, max_new_tokens=8), expected)
        answers = model.answer_all(base, max_new_tokens=8)
        attached = accuracy([answer.text for answer in answers], expected)
        abstained = 100 * sum(not answer.sources for answer in answers) / len(answers)
        harm.append({"seed": seed, "plain": plain, "attached": attached, "abstained": abstained})
        print(json.dumps(harm[-1]), file=sys.stderr, flush=True)
    columns = ["avg", "last", "forgetting", "deployed_bytes", "learn_seconds", "answer_seconds"]
    means = pd.DataFrame(rows).groupby("method", sort=False)[columns].mean()
    skills = pd.DataFrame(harm).drop(columns="seed").mean()
    if options.json:
        print(json.dumps({"runs": rows, "means": means.reset_index().to_dict("records"), "base_skills": harm}))
        return
    print(means.round(1).to_string())
    print(f"\nbase skills: plain {skills['plain']:.1f}, memory attached {skills['attached']:.1f} ", end="")
    print(f"(abstained on {skills['abstained']:.1f} % of them)")


if __name__ == "__main__":
    main()
