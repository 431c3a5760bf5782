"""Projection onto the capped simplex: weights between 0 and 1 that spend a budget exactly."""

import math

import torch
from jaxtyping import Float, Num
from torch import Tensor


def project(
    weights: Float[Tensor, " entries"], costs: Num[Tensor, " entries"], total: int | float
) -> Float[Tensor, " entries"]:
    """The nearest point (Euclidean) of {0 <= w <= 1, sum of costs * w = total}.

    With costs of 1 and total B this is the capped simplex of specs/inducekv.md, section 3; costs make it a budget in
    bytes (CHOICE: entries differ in size). Exact: the optimum is clip(v - mu * costs, 0, 1) for one mu, and the cost
    spent falls piecewise linearly in mu, so mu is found between two sorted breakpoints in O(entries log entries).

    Args:
        weights: `[entries]`, any finite numbers.
        costs: `[entries]`, positive, in the unit of `total` (bytes).
        total: what may be spent. At least the sum of costs gives all ones.

    Returns:
        `[entries]` in the dtype of `weights`.

    Raises:
        ValueError: shapes differ, a weight is not finite, a cost is not positive, or the total is negative.
    """
    if weights.shape != costs.shape or weights.dim() != 1:
        raise ValueError(f"weights and costs must be vectors of one length, got {weights.shape} and {costs.shape}")
    if not math.isfinite(total) or total < 0:
        raise ValueError(f"the total to spend must be a finite number of at least 0, got {total}")
    if not torch.isfinite(weights).all():
        raise ValueError("weights must be finite numbers")
    if len(costs) and not bool((costs > 0).all()):
        raise ValueError(f"costs must be positive, got {costs.min().item()}")
    if total >= float(costs.double().sum()):
        return torch.ones_like(weights)
    unit = costs.double().mean()
    spend, target = costs.double() / unit, total / unit
    wanted = weights.detach().double()

    def spent(mu: Float[Tensor, ""]) -> Float[Tensor, ""]:
        return (spend * (wanted - mu * spend).clamp(0, 1)).sum()

    breakpoints = torch.cat([(wanted - 1) / spend, wanted / spend]).sort().values
    low, high = 0, len(breakpoints) - 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if spent(breakpoints[middle]) >= target else (low, middle)
    left, right = breakpoints[low], breakpoints[high]
    spent_left, spent_right = spent(left), spent(right)
    slope = spent_left - spent_right
    share = (spent_left - target) / slope if slope > 0 else torch.zeros_like(slope)
    mu = left + share.clamp(0, 1) * (right - left)
    return (wanted - mu * spend).clamp(0, 1).to(weights.dtype)
