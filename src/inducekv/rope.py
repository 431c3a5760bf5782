"""Moving stored keys to other positions: rotary embedding is a group, so a shift is one more rotation."""

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from inducekv.families import DECODERS, rotation


def rotate_keys(
    keys: Float[Tensor, "*batch head_dim"],
    cos: Float[Tensor, "*shift rotary_dim"],
    sin: Float[Tensor, "*shift rotary_dim"],
    *,
    interleaved: bool = False,
) -> Float[Tensor, "*batch head_dim"]:
    """Rotate keys by the positions that `cos` and `sin` stand for (specs, hf-facts 6.8).

    Computed in float32 at least and returned in the keys' dtype. Dimensions beyond `rotary_dim` (partial rotary
    embedding) are left alone. `cos` and `sin` broadcast against the keys' leading axes: `families.rotation` gives
    them for integer shifts, one for the batch or one for each row or entry. `interleaved`: dimensions 2i and 2i+1 turn
    together, rather than i and i + rotary_dim / 2.
    """
    width = cos.shape[-1]
    wide = keys.to(torch.promote_types(keys.dtype, torch.float32))
    turned, rest = wide[..., :width], wide[..., width:]
    half = width // 2
    if interleaved:
        swapped = torch.stack([-turned[..., 1::2], turned[..., ::2]], -1).flatten(-2)
    else:
        swapped = torch.cat([-turned[..., half:], turned[..., :half]], -1)
    turned = turned * cos.to(wide) + swapped * sin.to(wide)
    return (torch.cat([turned, rest], -1) if rest.shape[-1] else turned).to(keys.dtype)


def shift_keys(
    text_model: Any,
    keys: Float[Tensor, "*batch layers kv_heads tokens head_dim"],
    by: Int[Tensor, "*batch"],
    layers: Sequence[int] | None = None,
) -> Float[Tensor, "*batch layers kv_heads tokens head_dim"]:
    """Move all layers' keys by `by` positions, the same for every token of a row or entry.

    Layers with rotary embeddings of their own, or none, each get theirs (`families.DECODERS`). `layers`: which of the
    model's layers the keys are of; None: the first ones.
    """
    decoder = DECODERS[text_model.config.model_type]
    layers = range(keys.shape[-4]) if layers is None else layers
    ropes = [decoder.rope(text_model.config, layer) for layer in layers]
    tables = {rope: rotation(text_model, by, layers[ropes.index(rope)]) for rope in dict.fromkeys(ropes)}
    if len(tables) == 1:
        cos, sin = (x[..., None, None, None, :] for x in tables[ropes[0]])
        return rotate_keys(keys, cos, sin, interleaved=decoder.interleaved)
    moved = []
    for place, rope in enumerate(ropes):
        cos, sin = (x[..., None, None, :] for x in tables[rope])
        moved.append(rotate_keys(keys[..., place, :, :, :], cos, sin, interleaved=decoder.interleaved))
    return torch.stack(moved, -4)
