"""The attention that each key received from all queries of the prompt: the score of H2O and PrefixKV."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from inducekv.compression.prompt import LayerPrompt
from inducekv.compression.select import Selection

QUERIES_AT_ONCE = 256


@dataclass(frozen=True)
class AttentionSum(Selection):
    """Sums the attention of all queries, averaged over all heads, so that heads keep the same tokens (PrefixKV, specs
    section 3, importance). A sum, not a mean over the queries that see a key: early tokens are favoured, as published.

    Attributes:
        budget: as `Selection`.
        start: first tokens that always stay, beside the last one.
    """

    start: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.start < 0:
            raise ValueError(f"start must be at least 0 tokens, got {self.start}")

    def measure(self, prompt: LayerPrompt) -> Float[Tensor, "batch kv_heads stored"]:
        total = torch.zeros_like(prompt.stored, dtype=torch.float32)
        for first in range(0, prompt.tokens, QUERIES_AT_ONCE):
            stop = min(first + QUERIES_AT_ONCE, prompt.tokens)
            total += prompt.attention(first, stop).mean(1).sum(1)
        rank = prompt.stored.long().cumsum(-1)
        total[prompt.stored & (rank <= self.start)] = torch.inf
        total[:, -1] = torch.inf
        return total[:, None].expand(-1, prompt.keys.shape[1], -1)
