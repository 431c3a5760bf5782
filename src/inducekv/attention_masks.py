"""Which memory and prompt tokens each query sees, in the form that attention kernels take."""

from typing import Any

import torch
from jaxtyping import Bool, Float, Num
from torch import Tensor

from inducekv.injection import Injection


def widened_mask(
    injection: Injection,
    read: Bool[Tensor, "rows tokens"],
    query: Float[Tensor, "batch heads queries head_dim"],
    own: int,
    mask: Tensor | None,
    near: Bool[Tensor, "batch 1 queries tokens"] | None,
    reading: Bool[Tensor, "batch 1 queries 1"] | None = None,
) -> Tensor:
    """A mask over [memory; own] `[batch, 1, queries, memory + own]`: bool, or float where the memory has a bias.

    Args:
        read: memory tokens that each row reads in this layer.
        own: keys of the layer itself (prompt and answer so far).
        mask: over those, bool or additive, or None as attention kernels understand it.
        near: memory tokens that a sliding window holds; None: all.
        reading: queries that read memory (not those of the preamble); None: all.
    """
    batch, _, length, _ = query.shape
    repeats, device = repeats_of(batch, injection), query.device
    if mask is None:  # the kernels' own meaning of no mask: one query sees all, several are causal from the top left
        mask = torch.ones(length, own, dtype=torch.bool, device=device).tril(0 if length > 1 else own)[None, None]
    visible = expanded(read, repeats).to(device)[:, None, None].expand(-1, 1, length, -1)
    if near is not None:
        visible = visible & near.to(device)
    if reading is not None:
        visible = visible & reading.to(device)
    mask = mask[..., :own].expand(batch, -1, -1, -1)
    if injection.bias is None and mask.dtype == torch.bool:
        return torch.cat([visible.expand(-1, mask.shape[1], -1, -1), mask], -1)
    lowest = max(torch.finfo(query.dtype).min, torch.finfo(torch.float32).min)  # eager softmax is float32
    if mask.dtype == torch.bool:
        mask = torch.zeros(mask.shape, dtype=query.dtype, device=device).masked_fill_(~mask, lowest)
    bias = visible.new_zeros((), dtype=query.dtype)
    if injection.bias is not None:
        bias = expanded(injection.bias, repeats)[:, None, None].to(query)
    front = torch.where(visible, bias, lowest)
    return torch.cat([front.expand(-1, mask.shape[1], -1, -1).to(mask.dtype), mask], -1)


def real_tokens(mask: Any, tokens: Num[Tensor, "rows tokens"]) -> Bool[Tensor, "rows tokens"]:
    """Where a prompt is no padding, from its attention mask in whatever form `generate` made it.

    A static cache comes with masks `[rows, 1, queries, cache]`, or one for each kind of layer: a token that does not
    see itself is padding.
    """
    length = tokens.shape[1]
    if isinstance(mask, dict):
        mask = mask.get("full_attention", next(iter(mask.values())))
    if mask is None:
        return torch.ones(tokens.shape, dtype=torch.bool, device=tokens.device)
    if mask.dim() == 2:
        return mask[:, :length].bool()
    seen = mask[:, 0, :length, :length].diagonal(dim1=-2, dim2=-1)
    seen = seen if seen.dtype == torch.bool else seen > torch.finfo(seen.dtype).min / 2
    return seen.expand(len(tokens), -1)


def repeats_of(batch: int, injection: Injection) -> int:
    rows = injection.mask.shape[0]
    if batch % rows:
        raise ValueError(
            f"the memory attached is for {rows} rows, the batch has {batch}; they must be equal or a multiple (beams)"
        )
    return batch // rows


def expanded(x: Tensor, repeats: int) -> Tensor:
    return x if repeats == 1 else x.repeat_interleave(repeats, 0)
