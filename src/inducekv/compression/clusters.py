"""Evicted tokens as a few clusters: each a mean key, a mean value and a count, read as one token of that weight."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

ROUNDS = 3
"""Of Lloyd's algorithm, after seeds as far apart as possible. CHOICE: more change next to nothing."""


@dataclass(frozen=True)
class Clusters:
    """Evicted tokens of one layer, grouped by likeness of their keys.

    A cluster of n tokens gets the logit q k_mean + log n. By Jensen's inequality that is at most the mass its tokens
    would have had, whatever the query: where logits are spread, clusters say less than they could, never more.

    Attributes:
        keys, values: `[batch, kv_heads, clusters, head_dim]` means, in the cache's dtype.
        counts: `[batch, kv_heads, clusters]` float32 tokens of each; 0: an unused cluster.
    """

    keys: Float[Tensor, "batch kv_heads clusters head_dim"]
    values: Float[Tensor, "batch kv_heads clusters head_dim"]
    counts: Float[Tensor, "batch kv_heads clusters"]

    @classmethod
    def of(
        cls,
        keys: Float[Tensor, "batch kv_heads stored head_dim"],
        values: Float[Tensor, "batch kv_heads stored head_dim"],
        evicted: Bool[Tensor, "batch kv_heads stored"],
        clusters: int,
    ) -> "Clusters":
        """Groups the evicted tokens (k-means on keys, seeded by farthest points: no draws)."""
        numbers = keys.float()
        centres = numbers.gather(2, farthest(numbers, evicted, clusters)[..., None].expand(-1, -1, -1, keys.shape[-1]))
        for _ in range(ROUNDS):
            member = _members(numbers, centres, evicted)
            counts = member.sum(2)
            means = (member.transpose(2, 3) @ numbers) / counts.clamp_min(1)[..., None]
            centres = torch.where(counts[..., None] > 0, means, centres)
        member = _members(numbers, centres, evicted)
        counts = member.sum(2)
        share = member.transpose(2, 3) / counts.clamp_min(1)[..., None]
        return cls((share @ numbers).to(keys.dtype), (share @ values.float()).to(values.dtype), counts)

    def tensors(self) -> list[Tensor]:
        return [self.keys, self.values, self.counts]

    def read(
        self, queries: Float[Tensor, "batch kv_heads queries d"], scaling: float, method: object = None
    ) -> tuple[Float[Tensor, "batch kv_heads queries"], Float[Tensor, "batch kv_heads queries d"]]:
        """Logarithm of the clusters' mass for each query, and their output."""
        logits = queries @ self.keys.float().transpose(2, 3) * scaling + self.counts.log()[:, :, None]
        return logits.logsumexp(-1), logits.softmax(-1).nan_to_num() @ self.values.float()


def farthest(
    keys: Float[Tensor, "batch kv_heads stored d"], among: Bool[Tensor, "batch kv_heads stored"], count: int
) -> Int[Tensor, "batch kv_heads count"]:
    """Places of tokens as far from each other as possible (Gonzalez' greedy k-centre), the first farthest from 0."""
    nearest = keys.square().sum(-1).masked_fill(~among, -math.inf)
    chosen = []
    for number in range(count):
        place = nearest.argmax(-1, keepdim=True)
        chosen.append(place)
        distance = (keys - keys.gather(2, place[..., None].expand(-1, -1, -1, keys.shape[-1]))).square().sum(-1)
        nearest = (distance if number == 0 else torch.minimum(nearest, distance)).masked_fill(~among, -math.inf)
    return torch.cat(chosen, -1)


def _members(keys: Tensor, centres: Tensor, evicted: Tensor) -> Float[Tensor, "batch kv_heads stored clusters"]:
    """1 where a token belongs to a cluster (of equal distances the first)."""
    at = torch.cdist(keys, centres).argmin(-1, keepdim=True)
    return torch.zeros(*at.shape[:-1], centres.shape[2], device=keys.device).scatter(-1, at, 1.0) * evicted[..., None]
