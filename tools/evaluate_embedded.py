"""Measure the embedded model's gates on classes and names that it has never seen.

    python tools/evaluate_embedded.py [--seed N] [--json] [--model FOLDER]

Percentages; the standard error of each is about 1 to 2 points. The model card lists what each gate asks for.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from inducekv.backbone import Backbone
from inducekv.compression import compression_named
from inducekv.config import InduceKVConfig
from inducekv.continual.graders import exact_match
from inducekv.embedded import path
from inducekv.embedded.drawings import SCENE_ATTRIBUTES
from inducekv.embedded.tasks import alphabet, attribute, base_skills, digits, pairs
from inducekv.entry import Entry
from inducekv.examples import Example
from inducekv.memory import KVMemory
from inducekv.model import InducedModel, empty_memory
from inducekv.retrieval import Calibration

GATES = {
    "zero_shot": 90.0,
    "prompt_5way": 85.0,
    "memory_5way": "prompt_5way - 5",
    "digits_10way": 75.0,
    "match_minus_copy": 3.0,
    "match_minus_prompt": -3.0,
    "composition": 75.0,
    "bytes": 8_000_000,
}
FULL = InduceKVConfig(budget="64MiB", payload="none", payload_dtype="float16", abstain=False)
"""The default way of reading, but nothing compressed and nothing left unanswered."""
ALIKE = FULL.replace(weighting="none")
"""All retrieved entries count alike, as in a prompt: for the gates that compare with one, or combine entries."""


def memory_of(backbone: Backbone, examples: Sequence[Example], config: InduceKVConfig) -> KVMemory:
    """A memory that holds just these examples, nothing selected."""
    memory = empty_memory(backbone, config)
    memory.calibration = Calibration.identity(backbone.layers, config.temperature)  # nothing is learned here
    compression = compression_named(config)
    encoded = backbone.encode(examples, key_layer=config.key_layer, key_pool=config.key_pool)
    for i, (example, e) in enumerate(zip(examples, encoded, strict=True)):
        stored = compression.compress(e)
        memory.add(
            Entry.of(
                stored,
                id=str(i),
                task="task",
                payload_dtype=config.payload_dtype,
                key_dtype=config.key_dtype,
                question=example.question,
                answer=example.answer or "",
            )
        )
    return memory


def share_right(texts: Sequence[str], examples: Sequence[Example]) -> float:
    return 100 * float(
        np.mean([exact_match(text, example.answer or "") for text, example in zip(texts, examples, strict=True)])
    )


def through_memory(
    backbone: Backbone, entries: Sequence[Example], questions: Sequence[Example], config: InduceKVConfig = FULL
):
    """Answers, and for each question the entries it read, best last."""
    model = InducedModel(backbone, memory_of(backbone, entries, config), config)
    answers = model.answer_all(questions, max_new_tokens=16)
    read = [[entries[int(source.id)] for source in reversed(answer.sources)] for answer in answers]
    return [answer.text for answer in answers], read


def through_prompt(
    backbone: Backbone, contexts: Sequence[Sequence[Example]], questions: Sequence[Example]
) -> list[str]:
    """Answers when the entries are given as earlier turns of a real conversation."""
    processor, texts = backbone.processor, []
    for context, question in zip(contexts, questions, strict=True):
        messages, pictures = [], []
        for example in [*context, question]:
            parts = [{"type": "image"} for _ in example.images] + [{"type": "text", "text": example.question}]
            messages.append({"role": "user", "content": parts})
            pictures += example.load_images()
            if example is not question:
                messages.append({"role": "assistant", "content": [{"type": "text", "text": example.answer}]})
        prompt = processor.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        inputs = processor(text=[prompt], images=[pictures], return_tensors="pt")
        tokens = backbone.model.generate(**inputs, max_new_tokens=16, do_sample=False)
        texts.append(
            processor.tokenizer.decode(tokens[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True).strip()
        )
    return texts


def nearest_labels(read: Sequence[Sequence[Example]]) -> list[str]:
    return [entries[-1].answer or "" for entries in read]


def five_way(backbone: Backbone, seed: int, episodes: int) -> tuple[float, float]:
    prompt, memory = [], []
    for episode in range(episodes):
        train, test = alphabet(1000 * seed + episode, classes=5, train=1, test=1, task="five way")
        memory.append(share_right(through_memory(backbone, train, test, ALIKE)[0], test))
        prompt.append(share_right(through_prompt(backbone, [train] * len(test), test), test))
    return float(np.mean(prompt)), float(np.mean(memory))


def reading(backbone: Backbone, seed: int, questions: int) -> dict[str, dict[str, float]]:
    """One attribute of five is asked under made-up names: accuracy through memory, by label copy, and as a prompt."""
    figures = {}
    for name in SCENE_ATTRIBUTES:
        train, test = attribute(seed, name, train=64, test=questions)
        texts, read = through_memory(backbone, train, test, ALIKE)
        figures[name] = {
            "memory": share_right(texts, test),
            "copy": share_right(nearest_labels(read), test),
            "prompt": share_right(through_prompt(backbone, read, test), test),
        }
    return figures


def evaluate(backbone: Backbone, seed: int, folder: Path, scale: float = 1.0) -> dict[str, object]:
    def n(number: int) -> int:
        return max(2, int(number * scale))

    base = base_skills(4 * n(150), seed)
    zero_shot = share_right(backbone.generate(base, max_new_tokens=8), base)
    prompt, memory = five_way(backbone, seed, n(60))
    digit_runs = []
    for run in range(n(4)):
        train, test = digits(10 * seed + run, train=4, test=15)
        digit_runs.append(share_right(through_memory(backbone, train, test)[0], test))
    attributes = reading(backbone, seed, n(100))
    composed = []
    for run in range(n(6)):
        train, test = pairs(10 * seed + run, train=1, test=n(64))
        composed.append(share_right(through_memory(backbone, train, test, ALIKE)[0], test))

    def mean_gap(other: str) -> float:
        return float(np.mean([figures["memory"] - figures[other] for figures in attributes.values()]))

    return {
        "zero_shot": zero_shot,
        "prompt_5way": prompt,
        "memory_5way": memory,
        "digits_10way": float(np.mean(digit_runs)),
        "match_minus_copy": mean_gap("copy"),
        "match_minus_prompt": mean_gap("prompt"),
        "composition": float(np.mean(composed)),
        "bytes": sum(file.stat().st_size for file in folder.glob("*.safetensors")),
        "attributes": attributes,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--model", type=Path, default=path())
    parser.add_argument("--scale", type=float, default=1.0, help="share of the usual number of questions")
    options = parser.parse_args()
    figures = evaluate(Backbone.from_pretrained(options.model), options.seed, options.model, options.scale)
    if options.json:
        print(json.dumps({"seed": options.seed, **figures}))
        return
    for name, gate in GATES.items():
        print(f"{name:20} {figures[name]:>12,.1f}   gate {gate}")
    for name, row in figures["attributes"].items():  # type: ignore[union-attr]
        print(f"  {name:18} " + "  ".join(f"{k} {v:.1f}" for k, v in row.items()))


if __name__ == "__main__":
    main()
