"""What is tuning worth? The demo's stream at equal bytes, learned with and without a tuned payload.

    python benchmarks/tuned.py [--json] [--seeds 21,22,23] [--budget 64KiB] [--selector bilevel] [--config tuned.json]

Tuning sees training examples of the same stream only: of the first task (`payload="auto"`), or of all tasks. Prints
Last (mean accuracy in percent on the test examples of all tasks after the last one), mean over seeds, entries, and
seconds of tuning; test examples are used for nothing else.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import pandas as pd

from inducekv import Backbone, InducedModel, InduceKVConfig
from inducekv.continual.demo import stream_of_demo
from inducekv.continual.graders import accuracy
from inducekv.continual.stream import Stream
from inducekv.embedded import path
from inducekv.tuning import fields_of, tune
from inducekv.tuning.tuner import POINTS, QUESTIONS

SETTINGS = ("keep-answer, float16", "default", "tuned on the first task", "tuned on all tasks")


def configured(
    setting: str, backbone: Backbone, stream: Stream, plain: InduceKVConfig, bounds: dict[str, int]
) -> tuple[InduceKVConfig, float]:
    """The configuration to learn with, and seconds spent on finding it beforehand."""
    if setting == "keep-answer, float16":
        return plain.replace(payload="keep_answer", payload_tokens=0, payload_dtype="float16"), 0.0
    if setting == "tuned on the first task":
        return plain.replace(payload="auto"), 0.0
    if setting == "tuned on all tasks":
        tasks = {experience.task: list(experience.train) for experience in stream.experiences}
        report = tune(backbone, tasks, plain, **bounds)
        return report.config, report.seconds
    return plain, 0.0


def last_of(
    backbone: Backbone, stream: Stream, config: InduceKVConfig, limit: int | None
) -> tuple[float, float, InducedModel]:
    """Last, seconds of learning, and the model."""
    model = InducedModel.from_pretrained(backbone, config=config)
    start = time.perf_counter()
    for experience in stream.experiences:
        model.learn(list(experience.train), task=experience.task)
    seconds = time.perf_counter() - start
    scores = []
    for experience in stream.experiences:
        asked = list(experience.test)[:limit]
        answers = [answer.text for answer in model.answer_all(asked)]
        scores.append(accuracy(answers, [example.answer or "" for example in asked]))
    return sum(scores) / len(scores), seconds, model


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--seeds", default="21,22,23", help="streams and draws, comma-separated")
    parser.add_argument("--budget", default="64KiB")
    parser.add_argument("--selector", default="bilevel")
    parser.add_argument("--limit", type=int, help="test examples of a task, at most; by default all")
    parser.add_argument("--points", type=int, default=POINTS, help="points that tuning on all tasks looks at")
    parser.add_argument("--questions", type=int, default=QUESTIONS, help="questions that it asks")
    parser.add_argument("--config", type=Path, help="fields that tune --out wrote, learned as a setting of their own")
    parser.add_argument("--settings", default=";".join(SETTINGS), help="separated by semicolons")
    options = parser.parse_args(arguments)
    backbone = Backbone.from_pretrained(path())
    bounds = {"points": options.points, "questions": options.questions}
    runs: list[dict[str, Any]] = []
    for seed in map(int, options.seeds.split(",")):
        stream = stream_of_demo(seed)
        plain = InduceKVConfig(budget=options.budget, selector=options.selector, seed=seed)
        for setting in [*filter(None, options.settings.split(";")), *(["as given"] if options.config else [])]:
            if setting == "as given":
                config, tuning = plain.replace(**json.loads(options.config.read_text())), 0.0
            else:
                config, tuning = configured(setting, backbone, stream, plain, bounds)
            last, learning, model = last_of(backbone, stream, config, options.limit)
            runs.append(
                {
                    "setting": setting,
                    "seed": seed,
                    "last": last,
                    "entries": len(model.memory),
                    "nbytes": model.memory.nbytes,
                    "tune_seconds": tuning,
                    "learn_seconds": learning,
                    "config": fields_of(model.config),
                }
            )
            print(json.dumps(runs[-1]), file=sys.stderr, flush=True)
    columns = ["last", "entries", "nbytes", "tune_seconds", "learn_seconds"]
    means = pd.DataFrame(runs).groupby("setting", sort=False)[columns].mean()
    if options.json:
        print(json.dumps({"runs": runs, "means": means.reset_index().to_dict("records")}))
        return
    print(means.round(1).to_string())


if __name__ == "__main__":
    main()
