"""Keeps the answer's tokens whole and pools, or drops, everything before them."""

import dataclasses
from dataclasses import dataclass

import torch

from inducekv.compression.base import Compression, even_groups, group_kinds, pool_tokens
from inducekv.encoded import ANSWER, Encoded


@dataclass(frozen=True)
class KeepAnswer(Compression):
    """Answer tokens stay as they are; image and question are pooled into `context_tokens` tokens (CHOICE).

    The answer's keys and values were computed after reading the picture and the question, so they already say what they
    answer; averaging them with others destroys them (DESIGN.md, decision 3).

    An answer by itself takes only its own positions (`span`), so that hundreds of entries fit into a model's context;
    with context tokens the entry takes the positions of the whole example.

    Attributes:
        context_tokens: tokens the image and the question are pooled to, 0 drops them.

    Raises:
        ValueError: `context_tokens` is negative, or an example to compress has no answer tokens.
    """

    context_tokens: int = 0

    def __post_init__(self) -> None:
        if self.context_tokens < 0:
            raise ValueError(f"keep_answer needs payload_tokens of at least 0, got {self.context_tokens}")

    def compress(self, encoded: Encoded) -> Encoded:
        is_answer = encoded.kinds == ANSWER
        if not is_answer.any():
            raise ValueError("keep_answer needs an example with an answer; this one has no answer tokens")
        answer = encoded.select(is_answer)
        if self.context_tokens == 0 or is_answer.all():
            length = answer.tokens
            return dataclasses.replace(answer, span=length) if bool(is_answer[-length:].all()) else answer
        context = encoded.select(~is_answer)
        length = context.keys.shape[2]
        count = min(self.context_tokens, length)
        groups = even_groups(length, count)
        return dataclasses.replace(
            encoded,
            keys=torch.cat([pool_tokens(context.keys, groups, count), answer.keys], dim=2),
            values=torch.cat([pool_tokens(context.values, groups, count), answer.values], dim=2),
            kinds=torch.cat([group_kinds(context.kinds, groups, count), answer.kinds]),
        )
