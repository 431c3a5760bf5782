"""When does a text model's first token come: plain, with memory, and with the same entries as a prompt?

    python benchmarks/text_latency.py --model smollm2 [--entries 16] [--questions 3] [--repeats 5] [--json]
                                      [--threads 1] [--clock cpu|wall] [--stream text/banking77 --root <data>]

The model learns one task by `InduceKVConfig.fast` with the configuration it names for itself, and answers questions one
at a time in one run, the ways interleaved (A B C, C B A, ...): first tokens are medians of repeats, ratios medians over
questions. Without `--stream` examples are made up, about as long as a bank customer's question. How long learning takes
beside an epoch of LoRA is what `learning_time.py --model` measures.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from _overhead_measure import CLOCKS, Way, interleaved
from inducekv import InducedModel
from inducekv.config import FAST
from inducekv.continual.streams import stream_named
from inducekv.examples import Example
from inducekv.lookup import Reading
from inducekv.named import load_backbone

PLAIN, MEMORY, PROMPT = "plain", "memory", "the same entries as a prompt"
TARGETS = {(MEMORY, PLAIN): 1.10, (MEMORY, PROMPT): 0.25}
SUBJECTS = ["card", "payment", "transfer", "refund", "passcode", "account", "balance", "top-up", "exchange", "charge"]
VERBS = ["was declined", "has not arrived yet", "shows twice in the app", "cannot be cancelled", "was charged a fee"]
ENDS = [
    "since this morning",
    "at the supermarket",
    "when I travel abroad",
    "although I tried it again",
    "and I need it now",
]


def made_up(count: int, seed: int) -> list[Example]:
    """Customers' sentences in which a subject and what happened decide the answer."""
    draw = np.random.default_rng(seed)
    rows = []
    for number in range(count):
        subject, verb, end = (str(draw.choice(words)) for words in (SUBJECTS, VERBS, ENDS))
        question = f"Customer: Hello, my {subject} {verb} {end}.\nIntent:"
        rows.append(Example(question, f"{subject} {verb.split()[-1]}", id=f"{seed}-{number}"))
    return rows


def examples_of(options: argparse.Namespace) -> tuple[list[Example], list[Example]]:
    """What is learned, and what is asked."""
    if options.stream is None:
        return made_up(options.examples, 0), made_up(options.questions, 1)
    stream = stream_named(
        options.stream, root=options.root, tasks=1, train_samples=options.examples, test_samples=options.questions
    )
    return list(stream.experiences[0].train), list(stream.experiences[0].test)


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """First tokens in seconds for each question and way, and how many tokens each reads."""
    backbone = load_backbone(options.model)
    learned, asked = examples_of(options)
    changes = {**FAST, "budget": options.budget, "top_k": options.entries, "abstain": False}
    model = InducedModel.from_pretrained(backbone, config=changes)
    model.learn(learned, task="measured")
    sources = {example.identifier: example for example in learned}
    reading = Reading(model.memory, model.config)
    rows = []
    for question in asked:
        retrieved = reading.retrieved(model.query_keys([question]))
        assert retrieved is not None
        shown = [sources[model.memory.entries[place].id] for place in retrieved.indices[0].tolist()]
        plain = backbone.prepare([question], False).batches[0].inputs
        prompt = backbone.prepare([question], False, shown=[shown]).batches[0].inputs
        ways = {
            PLAIN: Way(backbone.model, plain, options.tokens),
            MEMORY: Way(backbone.model, plain, options.tokens, model.attached),
            PROMPT: Way(backbone.model, prompt, options.tokens),
        }
        timed = interleaved(ways, options.repeats, CLOCKS[options.clock], lambda line: None)
        rows.append(
            {
                "entries": len(shown),
                "tokens": {PLAIN: plain["input_ids"].shape[1], PROMPT: prompt["input_ids"].shape[1]},
                "first": {name: statistics.median(way.first) for name, way in timed.items()},
                "token": {name: statistics.median(way.token) for name, way in timed.items() if way.token},
            }
        )
    return {"retrieval": model.config.retrieval, "payload": model.config.payload, "questions": rows}


def ratios(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Medians over questions, and the least and the largest question."""
    rows = []
    further: dict[tuple[str, str], float | None] = {(MEMORY, PLAIN): None}
    for part, what, targets in (("first", "first token", TARGETS), ("token", "a further token", further)):
        for (above, below), target in targets.items():
            each = [q[part][above] / q[part][below] for q in report["questions"] if above in q[part]]
            if each:
                middle = statistics.median(each)
                row = {"what": f"{what}, {above}", "against": below, "ratio": middle}
                row |= {"least": min(each), "most": max(each), "at most": target}
                rows.append(row | {"": "" if target is None else "met" if middle <= target else "missed"})
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="smollm2", help="model name or folder")
    parser.add_argument("--stream", help="name of a stream, whose first task is learned")
    parser.add_argument("--root", type=Path, help="folder of the stream's data")
    parser.add_argument("--examples", type=int, default=48, help="that are learned")
    parser.add_argument("--questions", type=int, default=3, help="that are asked, one at a time")
    parser.add_argument("--entries", type=int, default=16, help="that a question reads")
    parser.add_argument("--tokens", type=int, default=4, help="that are generated")
    parser.add_argument("--budget", default="16MiB")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=tuple(CLOCKS), default="cpu", help="cpu: for one thread of a shared machine")
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    options = parser.parse_args(arguments)
    for name in ("examples", "questions", "entries", "tokens", "repeats", "threads"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} must be at least 1, got {getattr(options, name)}")
    torch.set_num_threads(options.threads)
    report = measured(options)
    report["rows"] = ratios(report)
    if options.json:
        print(json.dumps(report))
        return
    tokens = {name: statistics.median(q["tokens"][name] for q in report["questions"]) for name in (PLAIN, PROMPT)}
    first = {n: statistics.median(q["first"][n] for q in report["questions"]) for n in (PLAIN, MEMORY, PROMPT)}
    print(
        f"{options.model}, {options.entries} entries ({report['payload']}, {report['retrieval']}), "
        f"{options.threads} threads, {options.clock} time"
    )
    print(f"prompt tokens: {', '.join(f'{name} {count:g}' for name, count in tokens.items())}")
    print(f"first token, ms: {', '.join(f'{name} {1000 * each:.1f}' for name, each in first.items())}\n")
    print(pd.DataFrame(report["rows"]).to_string(index=False, float_format="{:.3f}".format, na_rep=""))


if __name__ == "__main__":
    main()
