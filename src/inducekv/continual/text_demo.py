"""The experiment of `inducekv demo --text`: real requests, a published language model, and the methods compared."""

from __future__ import annotations

import time

import torch

from inducekv.backbone import Backbone
from inducekv.continual.graders import EXACT, GRADERS
from inducekv.continual.methods.base import Method
from inducekv.continual.methods.inducekv import InduceKV
from inducekv.continual.methods.nearest_neighbour import NearestNeighbour
from inducekv.continual.methods.zero_shot import ZeroShot
from inducekv.continual.stream import Experience, Stream
from inducekv.lengths import longest_answer
from inducekv.model import InducedModel
from inducekv.readers import read_examples
from inducekv.sample import TASKS, path

MODEL = "smollm2"
BATCH = 16
LEARNED, ASKED = 48, 20
"""Examples to learn from and questions a task: all methods together take a few minutes on two cores."""
GRADED = "Intents: exact match. Slots: F1 over (slot, words) pairs. An empty answer is wrong."
FASTER = 2.0
"""bfloat16 is taken where a product of its matrices is so many times faster than one of float32."""


def stream_of_text_demo(learned: int = LEARNED, asked: int = ASKED) -> Stream:
    """Intents of travellers, slots of weather requests, intents of bank customers, slots of table bookings.

    Args:
        learned, asked: the first so many rows of each task's splits.
    """
    return Stream(tuple(_experience(task, learned, asked) for task in TASKS), "demo/text")


def _experience(task: str, learned: int, asked: int) -> Experience:
    train, test = (tuple(read_examples(path() / task, split=split)) for split in ("train", "test"))
    slots = task.endswith("slots")
    return Experience(
        task,
        train[:learned],
        test[:asked],
        grader=GRADERS["slot_f1"] if slots else EXACT,
        also=(EXACT,) if slots else (),
    )


def methods_of_text_demo(
    backbone: Backbone, stream: Stream, budget: int, seed: int
) -> tuple[list[Method], InducedModel]:
    """Zero-shot, InduceKV and label copy over its entries. CHOICE: no LoRA, to stay within minutes."""
    fields = {"budget": budget, "seed": seed, "batch_size": BATCH}
    model = InducedModel.from_pretrained(backbone, config=fields)
    learned = [example for experience in stream.experiences for example in experience.train]
    longest = longest_answer(learned, backbone.processor.tokenizer)
    methods: list[Method] = [ZeroShot(backbone, longest), InduceKV(model, longest), NearestNeighbour(model)]
    for method in methods:
        method.batch_size = BATCH
    return methods, model


def cpu_dtype() -> torch.dtype:
    """bfloat16 where this machine's CPU multiplies it several times faster than float32 (it has AMX, say)."""
    seconds = {dtype: _seconds(dtype) for dtype in (torch.float32, torch.bfloat16)}
    return torch.bfloat16 if seconds[torch.float32] > FASTER * seconds[torch.bfloat16] else torch.float32


def _seconds(dtype: torch.dtype) -> float:
    """Of a product as in the feed-forward layers of `MODEL`, the fastest of three after one to warm up."""
    left, right = torch.ones(512, 576, dtype=dtype), torch.ones(576, 1536, dtype=dtype)
    taken = []
    for _ in range(4):
        started = time.perf_counter()
        left @ right
        taken.append(time.perf_counter() - started)
    return min(taken[1:])
