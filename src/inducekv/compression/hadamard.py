"""Walsh-Hadamard rotation: spreads what is large in a few channels over all of them, and loses nothing."""

import torch
from jaxtyping import Float
from torch import Tensor


def hadamard(x: Float[Tensor, "*batch channels"]) -> Float[Tensor, "*batch channels"]:
    """The orthonormal Walsh-Hadamard transform of the last axis; its own inverse. Float32 at least inside.

    Where the channels are no power of two (CHOICE): of successive blocks, each the largest power of two that divides
    them, so that an odd number of channels stays as it is.
    """
    channels = x.shape[-1]
    block = channels & -channels
    y = x.to(torch.promote_types(x.dtype, torch.float32)).unflatten(-1, (-1, block))
    step = 1
    while step < block:
        pairs = y.unflatten(-1, (-1, 2, step))
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        y = torch.stack([first + second, first - second], -2).flatten(-3)
        step *= 2
    return (y * block**-0.5).flatten(-2).to(x.dtype)
