"""Moving stored keys to other positions: rotary embedding is a group, so a shift is one more rotation."""

import torch
from jaxtyping import Float
from torch import Tensor


def rotate_keys(
    keys: Float[Tensor, "*batch head_dim"],
    cos: Float[Tensor, "*shift rotary_dim"],
    sin: Float[Tensor, "*shift rotary_dim"],
) -> Float[Tensor, "*batch head_dim"]:
    """Rotate keys by the positions that `cos` and `sin` stand for (specs, hf-facts 6.8).

    Computed in float32 at least and returned in the keys' dtype. Dimensions beyond `rotary_dim` (partial rotary
    embedding) are left alone. `cos` and `sin` broadcast against the keys' leading axes: `families.rotation` gives
    them for integer shifts, one for the batch or one for each row or entry.
    """
    width = cos.shape[-1]
    wide = keys.to(torch.promote_types(keys.dtype, torch.float32))
    turned, rest = wide[..., :width], wide[..., width:]
    half = width // 2
    swapped = torch.cat([-turned[..., half:], turned[..., :half]], -1)
    turned = turned * cos.to(wide) + swapped * sin.to(wide)
    return (torch.cat([turned, rest], -1) if rest.shape[-1] else turned).to(keys.dtype)
