"""From relaxed weights to a set of entries that fits the budget."""

from collections.abc import Sequence

import torch
from jaxtyping import Float, Num
from torch import Tensor


def round_weights(weights: Float[Tensor, " entries"], costs: Num[Tensor, " entries"], total: int | float) -> list[int]:
    """Takes entries in order of falling weight while they fit (specs/inducekv.md, section 3: commit the B largest).

    CHOICE: an entry that does not fit is passed over and smaller ones after it may still be taken; entries of weight 0
    are never taken; of equal weights the earlier entry goes first.

    Args:
        weights: `[entries]`.
        costs: `[entries]` bytes.
        total: bytes to spend.

    Returns:
        Indices in rising order; their costs sum to at most `total`.
    """
    order = torch.sort(weights.detach(), descending=True, stable=True).indices.tolist()
    prices, importance = costs.tolist(), weights.tolist()
    left, chosen = total, []
    for index in order:
        if importance[index] > 0 and prices[index] <= left:
            chosen.append(index)
            left -= prices[index]
    return sorted(chosen)


def indicator(chosen: Sequence[int], entries: int) -> Float[Tensor, " entries"]:
    """`[entries]` float32: 1 for the chosen, else 0."""
    weights = torch.zeros(entries)
    weights[list(chosen)] = 1.0
    return weights
