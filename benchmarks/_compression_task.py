"""What the compression benchmark asks, and how a prompt is read, compressed and only then asked.

Shared with `peers/kvpress_peer.py`, which runs it in another environment: no method of ours is imported here.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from inducekv.continual.graders import exact_match
from inducekv.embedded.tasks import alphabet, base_skills
from inducekv.examples import Example

FIRST_SEED = 5_000
"""Episodes are drawn from task seeds above this one, which nothing else in the project uses."""

TASKS = {
    "naming": {"named": 10, "plain": 0},
    "among others": {"named": 5, "plain": 10},
}
"""Earlier turns of one conversation: glyphs of a new alphabet under made-up names, one drawing each, and scenes with a
plain question and its answer. Then, after the cache was compressed, a new drawing of one glyph is asked: what mattered
is one picture of ten or fifteen, and nothing in the prompt says which."""


@dataclass(frozen=True)
class Prompt:
    """One conversation, and the questions that are asked at its end, each on its own.

    Attributes:
        context: model inputs of the earlier turns, one row.
        questions: model inputs of the last turn, a row each, without the context.
        answers: expected, one each.
    """

    context: dict[str, Tensor]
    questions: dict[str, Tensor]
    answers: list[str]

    @property
    def tokens(self) -> int:
        return self.context["input_ids"].shape[1]

    def digest(self) -> str:
        """Of every input: two environments that agree on it were asked the same."""
        made = hashlib.sha256()
        for inputs in (self.context, self.questions):
            for name in sorted(inputs):
                made.update(inputs[name].numpy().tobytes())
        return made.hexdigest()[:16]


@dataclass(frozen=True)
class Reading:
    """What became of one prompt: expected and given answers, bytes of the compressed prompt and of the full one."""

    right: int
    asked: int
    bytes: int
    texts: list[str]


def episode(task: str, seed: int, number: int) -> tuple[list[Example], list[Example]]:
    """Earlier turns and questions of one conversation: the same for the same arguments, everywhere."""
    sizes, draw = TASKS[task], FIRST_SEED + 1000 * seed + number
    named, questions = alphabet(draw, classes=sizes["named"], train=1, test=1, task=f"compression {task}")
    turns = named + base_skills(sizes["plain"], draw)
    random.Random(draw).shuffle(turns)
    return turns, questions


def prompt_of(processor: Any, turns: list[Example], questions: list[Example]) -> Prompt:
    """The model's inputs, context and last turn apart; together they are the chat template of the whole."""
    messages: list[dict[str, Any]] = []
    for turn in turns:
        messages += [_asked(turn), {"role": "assistant", "content": [{"type": "text", "text": turn.answer}]}]
    context = processor.apply_chat_template(messages, tokenize=False)
    last = []
    for question in questions:
        whole = processor.apply_chat_template([*messages, _asked(question)], tokenize=False, add_generation_prompt=True)
        if not whole.startswith(context):
            raise ValueError("the chat template changes earlier turns; the last one cannot be given apart")
        last.append(whole[len(context) :])
    pictures = [image for turn in turns for image in turn.load_images()]
    asked = [question.load_images() for question in questions]
    return Prompt(
        dict(processor(text=[context], images=[pictures], return_tensors="pt")),
        dict(processor(text=last, images=asked, return_tensors="pt", padding=True)),
        [question.answer or "" for question in questions],
    )


def _asked(example: Example) -> dict[str, Any]:
    parts = [{"type": "image"} for _ in example.images] + [{"type": "text", "text": example.question}]
    return {"role": "user", "content": parts}


def prompts(processor: Any, task: str, seed: int, limit: int) -> Iterator[Prompt]:
    for number in range(limit):
        yield prompt_of(processor, *episode(task, seed, number))


@torch.no_grad()
def read(
    model: Any,
    tokenizer: Any,
    prompt: Prompt,
    compression: Callable[[], AbstractContextManager[Any]],
    nbytes: Callable[[Cache], int],
    new_tokens: int = 12,
) -> Reading:
    """Reads the context, compresses it, then asks every question of the compressed cache (as rows of one batch).

    Positions are given, so that they go on from the context's true end whatever length a cache reports.

    Args:
        compression: opens what compresses; open while everything is read, as its hooks need.
        nbytes: of the cache right after the context.
    """
    cache = DynamicCache(config=model.config.get_text_config())
    ids = prompt.questions["input_ids"]
    if not bool(prompt.questions["attention_mask"].all()):
        raise ValueError("questions of one prompt must be equally long")
    with compression():
        model(**prompt.context, past_key_values=cache, use_cache=True, logits_to_keep=1)
        kept = nbytes(cache)
        cache.batch_repeat_interleave(len(ids))
        inputs = {**prompt.questions, "attention_mask": None}
        position, tokens = prompt.tokens, []
        ended = torch.zeros(len(ids), dtype=torch.bool)
        for _ in range(new_tokens):
            length = inputs["input_ids"].shape[1]
            places = torch.arange(position, position + length)[None].expand(len(ids), -1)
            output = model(**inputs, position_ids=places, past_key_values=cache, use_cache=True, logits_to_keep=1)
            tokens.append(output.logits[:, -1].argmax(-1))
            ended |= torch.isin(tokens[-1], torch.tensor(sorted(_ends(model))))
            if bool(ended.all()):
                break
            inputs, position = {"input_ids": tokens[-1][:, None], "attention_mask": None}, position + length
    texts = []
    for row in torch.stack(tokens, 1).tolist():
        ends = [i for i, token in enumerate(row) if token in _ends(model)]
        texts.append(tokenizer.decode(row[: ends[0]] if ends else row, skip_special_tokens=True).strip())
    right = sum(exact_match(text, answer) for text, answer in zip(texts, prompt.answers, strict=True))
    return Reading(int(right), len(texts), kept, texts)


def _ends(model: Any) -> set[int]:
    ids = model.generation_config.eos_token_id
    return set(ids) if isinstance(ids, list) else {ids}
