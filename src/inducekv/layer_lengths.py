"""Payloads whose layers hold different numbers of tokens: side by side in a file, padded to one block for attention."""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Loaded(NamedTuple):
    """A payload's numbers, ready to be read.

    Attributes:
        keys, values: `[layers, kv_heads, tokens, head_dim]` float32.
        layer_mask: `[layers, tokens]` True where a layer holds a token; None: every layer holds all.
    """

    keys: Float[Tensor, "layers kv_heads tokens head_dim"]
    values: Float[Tensor, "layers kv_heads tokens head_dim"]
    layer_mask: Bool[Tensor, "layers tokens"] | None


def by_layer(
    x: Float[Tensor, "tokens layers kv_heads head_dim"], held: Bool[Tensor, "layers tokens"]
) -> Float[Tensor, "mean layers kv_heads head_dim"]:
    """The tokens that layers hold, layer after layer, in a block of as few tokens a layer as they fit in.

    Args:
        held: which tokens each layer holds; they come before those it does not.
    """
    cells = x.transpose(0, 1)[held]
    layers = len(held)
    missing = -len(cells) % layers
    return torch.cat([cells, cells.new_zeros(missing, *cells.shape[1:])]).unflatten(0, (-1, layers))


def of_layers(
    x: Float[Tensor, "mean layers kv_heads head_dim"], held: Bool[Tensor, "layers tokens"]
) -> Float[Tensor, "layers kv_heads tokens head_dim"]:
    """The inverse of `by_layer`; zeros where a layer holds nothing."""
    cells = x.flatten(0, 1)[: int(held.sum())]
    whole = x.new_zeros(*held.shape, *x.shape[2:])
    whole[held] = cells
    return whole.transpose(1, 2)


def fills(lengths: Int[Tensor, "*entries layers"], tokens: Int[Tensor, "*entries"], layers: int) -> bool:
    """Whether every layer holds at least one token, and blocks of `tokens` a layer are as small as can be."""
    total = lengths.sum(-1, dtype=torch.int64)
    return bool((lengths >= 1).all() and (total <= tokens * layers).all() and (total > (tokens - 1) * layers).all())
