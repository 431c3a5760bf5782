"""Walsh-Hadamard rotation: spreads what is large in a few channels over all of them, and loses nothing."""

from functools import lru_cache

import torch
from jaxtyping import Float
from torch import Tensor

LARGEST = 256
"""Channels of a block up to which one product with the matrix is faster than the transform's additions, on CPUs."""


def hadamard(x: Float[Tensor, "*batch channels"]) -> Float[Tensor, "*batch channels"]:
    """The orthonormal Walsh-Hadamard transform of the last axis; its own inverse. Float32 at least inside.

    Where the channels are no power of two (CHOICE): of successive blocks, each the largest power of two that divides
    them, so that an odd number of channels stays as it is.
    """
    channels = x.shape[-1]
    block = channels & -channels
    y = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, block))
    if block > LARGEST:
        return _butterfly(y).flatten(-2).to(x.dtype)
    with torch.autocast(x.device.type, enabled=False):  # which would take the product in half precision
        return (y @ _matrix(block, y.dtype, y.device)).flatten(-2).to(x.dtype)


def _butterfly(y: Float[Tensor, "*batch block"]) -> Float[Tensor, "*batch block"]:
    block, step = y.shape[-1], 1
    while step < block:
        pairs = y.unflatten(-1, (-1, 2, step))
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        y = torch.stack([first + second, first - second], -2).flatten(-3)
        step *= 2
    return y * block**-0.5


@lru_cache(maxsize=32)
def _matrix(block: int, dtype: torch.dtype, device: torch.device) -> Float[Tensor, "block block"]:
    """The transform as a symmetric matrix."""
    with torch.inference_mode(False):  # kept for calls that may need gradients
        return _butterfly(torch.eye(block, dtype=dtype, device=device))
