"""What a live compression sees of a prompt in one layer, right after the layer's attention has read it."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from inducekv.compression.queries import RotaryTables, project_queries


@dataclass(frozen=True)
class LayerPrompt:
    """A layer's prompt.

    Attributes:
        layer, layers: which layer of how many.
        keys, values: `[batch, kv_heads, stored, head_dim]`, after rotary embedding: what the cache holds (a layer with
            a sliding window holds the last tokens only).
        real: `[batch, tokens]` False on padding, which is on the left.
        images: `[batch, tokens]` True on image tokens.
        position_ids: `[axes, batch, tokens]`, one axis or Qwen-VL's three.
        hidden: `[batch, tokens, hidden]` input of the attention module, or None once it is not needed any more.
        weights: `[batch, heads, tokens, tokens]` attention, where the model's attention gives it (`eager`), or None.
        module: the attention module.
        text_model: the decoder.
        arguments: keyword arguments of the attention module (`position_embeddings` among them).
        notes: what a method's `measure` leaves for its `store`.
    """

    layer: int
    layers: int
    keys: Float[Tensor, "batch kv_heads stored head_dim"]
    values: Float[Tensor, "batch kv_heads stored head_dim"]
    real: Bool[Tensor, "batch tokens"]
    images: Bool[Tensor, "batch tokens"]
    position_ids: Int[Tensor, "axes batch tokens"]
    hidden: Float[Tensor, "batch tokens hidden"] | None
    weights: Tensor | None
    module: nn.Module
    text_model: Any
    arguments: dict[str, Any]
    notes: dict[str, Any] = field(default_factory=dict)

    @property
    def tokens(self) -> int:
        """Tokens of the prompt, padding included."""
        return self.real.shape[1]

    @property
    def positions(self) -> Int[Tensor, " batch"]:
        """Position of each row's last token."""
        return self.position_ids[..., -1].amax(0)

    @property
    def offset(self) -> int:
        """Place in the prompt of the first token that is stored."""
        return self.tokens - self.keys.shape[2]

    @property
    def stored(self) -> Bool[Tensor, "batch stored"]:
        """Which of the stored tokens are real."""
        return self.real[:, self.offset :]

    @property
    def stored_images(self) -> Bool[Tensor, "batch stored"]:
        """Which of the stored tokens are image tokens."""
        return self.images[:, self.offset :] & self.stored

    @property
    def lengths(self) -> Int[Tensor, " batch"]:
        """Real tokens stored for each row."""
        return self.stored.sum(-1)

    @property
    def sliding_window(self) -> int | None:
        """Of this layer, or None."""
        config = self.text_model.config
        window, types = getattr(config, "sliding_window", None), getattr(config, "layer_types", None)
        if not window or (types and types[self.layer] != "sliding_attention"):
            return None
        return int(window) if types or getattr(config, "use_sliding_window", True) else None

    @property
    def scaling(self) -> float:
        """Of the attention logits."""
        return float(getattr(self.module, "scaling", None) or self.keys.shape[-1] ** -0.5)

    def queries(self, first: int, stop: int) -> Float[Tensor, "batch heads queries head_dim"]:
        """The prompt's own queries at places `first` to `stop`, after rotary embedding."""
        assert self.hidden is not None
        made = project_queries(self.module, self.hidden[:, first:stop], self.keys.shape[-1]).transpose(1, 2)
        return self.rotary(first, stop).turn(made)

    def rotary(self, first: int = 0, stop: int | None = None) -> RotaryTables:
        """The rotary embedding of the prompt's tokens `first` to `stop`."""
        tables = self.arguments.get("position_embeddings")
        return RotaryTables.of(self.text_model, self.layer, tables).at(first, stop)

    def queries_at(
        self, hidden: Float[Tensor, "_ queries hidden"], positions: Int[Tensor, "batch queries"]
    ) -> Float[Tensor, "batch heads queries head_dim"]:
        """Queries that other hidden states (`[1 or batch, queries, hidden]`) would make at given positions."""
        made = project_queries(self.module, hidden.to(self.keys.dtype), self.keys.shape[-1]).transpose(1, 2)
        made = made.expand(positions.shape[0], -1, -1, -1)
        return RotaryTables.anywhere(self.text_model, self.layer, positions, made).turn(made)

    def logits(
        self, queries: Float[Tensor, "batch heads queries head_dim"]
    ) -> Float[Tensor, "batch heads queries stored"]:
        """Scaled (and capped, where the layer does) logits in float32 over the stored keys; nothing is hidden yet."""
        groups = queries.shape[1] // self.keys.shape[1]
        grouped = queries.unflatten(1, (-1, groups)).flatten(2, 3)
        logits = (grouped @ self.keys.transpose(2, 3)).float() * self.scaling
        logits = logits.unflatten(2, (groups, -1)).flatten(1, 2)
        cap = getattr(self.module, "attn_logit_softcapping", None)
        if cap is not None and "eager" in str(self.text_model.config._attn_implementation):
            logits = torch.tanh(logits / cap) * cap
        return logits

    def attention(self, first: int, stop: int) -> Float[Tensor, "batch heads queries stored"]:
        """Attention of the prompt's own queries `first` to `stop`, float32; rows of padding are zero."""
        logits = self.logits(self.queries(first, stop))
        places = torch.arange(self.tokens, device=logits.device)
        at, keys = places[first:stop, None], places[None, self.offset :]
        seen = keys <= at
        if self.sliding_window is not None:
            seen = seen & (at - keys < self.sliding_window)
        visible = (seen[None] & self.stored[:, None])[:, None]
        weights = logits.masked_fill(~visible, torch.finfo(logits.dtype).min).softmax(-1)
        return weights * self.real[:, None, first:stop, None]

    def by_kv_head(self, x: Float[Tensor, "batch heads *rest"]) -> Float[Tensor, "batch kv_heads *rest"]:
        """Mean over the query heads that share a KV head."""
        return x.unflatten(1, (self.keys.shape[1], -1)).mean(2)
