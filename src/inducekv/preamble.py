"""The tokens that every rendered prompt begins with: beginning of text, system text, the header of the question."""

from collections.abc import Sequence
from dataclasses import replace
from itertools import takewhile

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from inducekv.injection import Injection


def common_beginning(*sequences: Sequence[int]) -> list[int]:
    """The tokens that all sequences begin with."""
    same = takewhile(lambda tokens: len(set(tokens)) == 1, zip(*sequences, strict=False))
    return [tokens[0] for tokens in same]


def own_tokens(
    prefix: Bool[Tensor, "rows tokens"], ids: Int[Tensor, "rows tokens"] | None, preamble: Sequence[int], closing: int
) -> Bool[Tensor, "rows tokens"]:
    """Tokens of a prompt that are no part of what every prompt begins with (`preamble`) and ends with (`closing`).

    Args:
        prefix: the prompt's tokens, without padding and answer.
        ids: token ids; None: every row is taken to begin with the whole preamble.
        preamble: token ids.
        closing: how many tokens.
    """
    place, length = prefix.long().cumsum(-1), prefix.sum(-1)
    skipped = torch.full_like(length, len(preamble))
    if ids is not None:
        rows = [row[shown].tolist() for row, shown in zip(ids, prefix.to(ids.device), strict=True)]
        skipped = torch.tensor([len(common_beginning(row, preamble)) for row in rows], device=prefix.device)
    own = prefix & (place > skipped[:, None]) & (place <= (length - closing)[:, None])
    return torch.where(own.any(-1, keepdim=True), own, prefix)


def guarded(
    injection: Injection | None,
    ids: Int[Tensor, "rows tokens"] | None,
    real: Bool[Tensor, "rows tokens"],
    preamble: Sequence[int],
    first_position: int,
) -> Injection | None:
    """Guard only as much of each row's prompt as it has in common with the preamble, and at least its first token.

    A prompt with another system text still keeps its first token, the attention sink, free of memory (CHOICE).

    Args:
        injection: for the rows; one without a guard is returned as it is.
        ids: of the prompt; None where the model was given embeddings, whose beginning cannot be compared.
        real: where the prompt is no padding.
        preamble: token ids.
        first_position: position of a prompt's first token.
    """
    if injection is None or injection.guard is None or ids is None:
        return injection
    lengths = []
    for row, shown in zip(ids.tolist(), real.tolist(), strict=True):
        own = [token for token, is_real in zip(row, shown, strict=True) if is_real]
        lengths.append(max(1, len(common_beginning(own, preamble))))
    guard = torch.tensor(lengths, device=injection.guard.device) + first_position
    return replace(injection, guard=torch.minimum(injection.guard, guard))
