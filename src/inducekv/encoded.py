"""What one frozen pass over an example yields: its retrieval key and its keys and values of every layer."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Float32, Int8
from torch import Tensor

TEXT, IMAGE, ANSWER = 0, 1, 2
"""Kinds of tokens in `Encoded.kinds`. The end-of-turn token belongs to the answer."""


@dataclass(frozen=True)
class Encoded:
    """One example as attention-ready tensors (InduceKV, the entry e(x) before compression; specs section 1).

    Attributes:
        key: `[hidden]` float32, unit norm: the pooled hidden state of the part before the answer.
        keys: `[layers, kv_heads, tokens, head_dim]` after rotary embedding, in the canonical frame: rotated so that
            the example's last position is -1 (CHOICE: injection at negative positions).
        values: `[layers, kv_heads, tokens, head_dim]`.
        kinds: `[tokens]` int8: `TEXT`, `IMAGE` or `ANSWER`.
        span: positions the example occupies (fewer than its tokens where a family packs image tokens).
        answer_length: answer tokens the example had, its end-of-turn token included; 0 if it had no answer.
        scores: `[layers, kv_heads, tokens]` float32: what a compression measured while the example was encoded
            (`Backbone.encode(..., scorer=)`), for methods that select tokens; or None.
        layer_mask: `[layers, tokens]` True where a layer holds a token, its tokens first, at least one; None: every
            layer holds all (only methods that give layers different numbers of tokens make one).
    """

    key: Float32[Tensor, "hidden"]
    keys: Float[Tensor, "layers kv_heads tokens head_dim"]
    values: Float[Tensor, "layers kv_heads tokens head_dim"]
    kinds: Int8[Tensor, "tokens"]
    span: int
    answer_length: int
    scores: Float32[Tensor, "layers kv_heads tokens"] | None = None
    layer_mask: Bool[Tensor, "layers tokens"] | None = None

    @property
    def tokens(self) -> int:
        """Tokens in the payload."""
        return self.keys.shape[2]

    def select(self, chosen: Tensor) -> "Encoded":
        """The same example with only some of its tokens (`chosen`: bool mask or indices `[tokens]`), same span.

        Raises:
            ValueError: its layers hold different tokens.
        """
        if self.layer_mask is not None:
            raise ValueError("layers of this example hold different tokens; select before a method that does that")
        chosen = chosen.to(self.keys.device)
        if chosen.dtype == torch.bool:
            chosen = chosen.nonzero().flatten()
        kinds = self.kinds[chosen.to(self.kinds.device)]
        scores = None if self.scores is None else self.scores[:, :, chosen.to(self.scores.device)]
        return Encoded(
            self.key, self.keys[:, :, chosen], self.values[:, :, chosen], kinds, self.span, self.answer_length, scores
        )
