"""How long does it take to learn a task, beside one epoch of LoRA on the same examples?

    python benchmarks/learning_time.py [--json] [--stream embedded/task] [--seed 7] [--clock cpu] [--threads 1]
    python benchmarks/learning_time.py --model <model> --stream text/banking77 --root <data> --budget 16MiB --one-epoch

Every task of a stream is learned by InduceKV as the model says, with a quarter of the bytes (in which less fits, so
that it must choose), with phi fitted after every task, and in one pass (`InduceKVConfig.fast`), and by sequential LoRA
with one epoch and with its twenty, one after another, task by task, so that all of them meet the same state of the
machine. Seconds are medians over tasks; the first, which also pays for what is loaded once, is left out. "LoRA, steps
of one epoch" is the training loop alone: pictures were seen and prompts rendered before.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from unittest.mock import patch

import pandas as pd
import torch

from inducekv import InducedModel, InduceKVConfig
from inducekv.config import FAST
from inducekv.continual.methods import trained
from inducekv.continual.methods.base import Method
from inducekv.continual.methods.inducekv import InduceKV
from inducekv.continual.methods.sequential_lora import SequentialLora
from inducekv.continual.streams import stream_named
from inducekv.named import load_backbone
from inducekv.progress import SILENT

CLOCKS: dict[str, Callable[[], float]] = {"cpu": time.process_time, "wall": time.perf_counter}
EPOCH, STEPS = "LoRA, one epoch", "LoRA, steps of one epoch"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--stream", default="embedded/task")
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--tasks", type=int, default=None, help="only so many of the stream's tasks")
    parser.add_argument("--limit", type=int, default=None, help="only so many examples of each task")
    parser.add_argument("--budget", default="256KiB")
    parser.add_argument("--model", default="embedded", help="model name, folder, or embedded")
    parser.add_argument("--root", type=Path, default=None, help="folder of the stream's data")
    parser.add_argument("--one-epoch", action="store_true", help="leave out LoRA's twenty epochs")
    parser.add_argument("--clock", choices=CLOCKS, default="cpu")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    clock = CLOCKS[options.clock]
    stream = stream_named(options.stream, seed=options.seed, root=options.root, limit=options.limit)
    experiences = stream.experiences[: options.tasks]
    if len(experiences) < 2:
        parser.error("at least two tasks are needed, since the first is left out")

    backbone = load_backbone(options.model)
    base = backbone.config({"budget": options.budget})
    configs = {
        "InduceKV, fast": base.replace(**FAST),
        "InduceKV": base,
        "InduceKV, a quarter of the bytes": base.replace(budget=base.budget_bytes // 4),
        "InduceKV, calibrated": base.replace(calibration_steps=InduceKVConfig.calibration_steps),
    }
    methods: dict[str, Method] = {
        name: InduceKV(InducedModel.from_pretrained(backbone, config=config)) for name, config in configs.items()
    }
    nbytes, usual = base.budget_bytes, SequentialLora.recipe
    methods[EPOCH] = SequentialLora(backbone, nbytes, recipe=dataclasses.replace(usual, epochs=1))
    if not options.one_epoch:
        methods["LoRA, twenty epochs"] = SequentialLora(backbone, nbytes, recipe=dataclasses.replace(usual, epochs=20))

    seconds: dict[str, list[float]] = {name: [] for name in (*methods, STEPS)}
    fit = trained.fit

    def timed(*arguments: object) -> list[float]:
        start = clock()
        losses = fit(*arguments)  # type: ignore[arg-type]
        steps.append(clock() - start)
        return losses

    for place, experience in enumerate(experiences):
        for name, method in methods.items():
            steps: list[float] = []
            with patch.object(trained, "fit", timed):
                start = clock()
                method.learn(experience, SILENT)
                taken = clock() - start
            if place:
                seconds[name].append(taken)
                if name == EPOCH:
                    seconds[STEPS] += steps
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    rows = [
        {
            "method": name,
            "seconds": median,
            "of one epoch": median / medians[EPOCH],
            "of its steps": median / medians[STEPS],
        }
        for name, median in sorted(medians.items(), key=lambda item: item[1])
    ]
    examples = statistics.median(len(e.train) for e in experiences[1:])
    if options.json:
        root = None if options.root is None else str(options.root)
        settings = {**vars(options), "root": root, "examples_a_task": examples}
        print(json.dumps({"settings": settings, "rows": rows, "seconds": seconds}))
        return
    what = f"{options.model}, {options.stream}, seed {options.seed}"
    print(f"{what}: {len(experiences) - 1} tasks of {examples:g} examples, {options.clock}")
    print(pd.DataFrame(rows).to_string(index=False, float_format=lambda x: f"{x:.3g}"))


if __name__ == "__main__":
    main()
