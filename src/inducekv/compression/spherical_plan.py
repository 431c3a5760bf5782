"""Spherical KV's joint choice: which precision each token gets, or none, under one budget of bytes."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from inducekv.compression.bits import packed_bytes
from inducekv.compression.polar import Bits, key_bytes
from inducekv.compression.prompt import LayerPrompt


@dataclass(frozen=True)
class Tier:
    """A precision: bits of a key's angles, bits of a value, and the errors they make.

    Attributes:
        logit_error: squared error of logits, relative (specs section 6, normal keys).
        value_error: of values, relative to their norm.
    """

    angles: Bits
    value_bits: int
    logit_error: float
    value_error: float

    def token_bytes(self, head_dim: int) -> int:
        """Bytes of one token in one KV head, its place included."""
        return key_bytes(head_dim, self.angles) + packed_bytes(head_dim, self.value_bits) + 4 + 4


TIERS = (
    Tier((6, 5, 5, 4, 4), 4, 0.0017, 0.01),
    Tier((4, 3, 3, 3, 2), 4, 0.0199, 0.01),
    Tier((3, 2, 2, 2, 2), 2, 0.085, 0.2),
)
"""From fine to coarse: about 5.5, 3.5 and 2.6 bits a number of the key. Below them, tokens are dropped."""


@dataclass(frozen=True)
class Row:
    """One row of one layer: distortions of its tokens when dropped or in each tier, `[kv_heads, 1 + tiers, tokens]`."""

    length: int
    distortion: Float[Tensor, "kv_heads choices tokens"]
    costs: tuple[int, ...]

    @classmethod
    def of(cls, prompt: LayerPrompt, utility: Tensor, row: int) -> "Row":
        length, width = int(prompt.lengths[row]), prompt.keys.shape[-1]
        utility = utility[row, :, -length:].cpu()
        size = prompt.values[row, :, -length:].float().norm(dim=-1).cpu()
        radius = prompt.keys[row, :, -length:].float().square().sum(-1).cpu()
        spread = radius * float(prompt.notes["query_size"][row]) / width**2
        each = [utility * size]
        each += [utility * size * (spread * tier.logit_error + tier.value_error).clamp_max(1) for tier in TIERS]
        heads = prompt.keys.shape[1]
        return cls(length, torch.stack(each, 1), (0, *(heads * tier.token_bytes(width) for tier in TIERS)))


def shared(rows: list[Row], exact: list[Tensor], room: float) -> list[list[Tensor]]:
    """For each layer the tokens `[kv_heads, n]` that stay exact and those of each tier, within `room` bytes.

    Heads rank their tokens by what dropping them costs; the tier of a rank is the one whose mean distortion over heads
    plus bytes at the going price is lowest.
    """
    orders, curves = [], []
    for row, kept in zip(rows, exact, strict=True):
        free = torch.ones(row.length, dtype=torch.bool)
        free[kept] = False
        places = free.nonzero().flatten()
        distortion = row.distortion[:, :, places]
        order = distortion[:, 0].argsort(dim=-1, descending=True, stable=True)
        curves.append(distortion.gather(2, order[:, None].expand_as(distortion)).mean(0))
        orders.append(places[order])
    costs = torch.tensor(rows[0].costs, dtype=torch.float64)

    def counts_at(price: float) -> list[Tensor]:
        tiers = [(curve.double() + price * costs[:, None]).argmin(0) for curve in curves]
        return [torch.bincount(t, minlength=len(costs)) for t in tiers]

    low, high = -40.0, 10.0  # logarithm of the price of a byte
    for _ in range(50):
        middle = (low + high) / 2
        if sum(float((n * costs).sum()) for n in counts_at(math.exp(middle))) <= room:
            high = middle
        else:
            low = middle
    plans = []
    for row, kept, order, counts in zip(rows, exact, orders, counts_at(math.exp(high)), strict=True):
        ends = torch.cat([torch.zeros(1, dtype=torch.long), counts[1:].cumsum(0)])
        tiers = [order[:, ends[i] : ends[i + 1]] for i in range(len(TIERS))]
        plans.append([kept.expand(row.distortion.shape[0], -1), *tiers])
    return plans
