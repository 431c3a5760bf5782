"""Two to four bits a number for rotated heads: the levels that suit a bell curve best, times one scale."""

from itertools import pairwise
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from inducekv.compression.hadamard import hadamard
from inducekv.compression.trellis import decode_trellis, encode_trellis

UPPER = {
    2: (0.4528, 1.5104),
    3: (0.2451, 0.7560, 1.3439, 2.1520),
    4: (0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6180, 2.0690, 2.7326),
}
LEVELS = {bits: (*(-x for x in reversed(upper)), *upper) for bits, upper in UPPER.items()}
"""By bits: least mean squared error for a standard normal (Max, Quantizing for minimum distortion, 1960, table I)."""
CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Shares of the largest number that are tried as the outer level, or a key's largest code. CHOICE."""
SMALLEST = torch.finfo(torch.float32).tiny
AT_ONCE = 2**20
"""Numbers whose clips are all tried at once: payloads of whole examples of large models must not be held six times."""


class Levels(NamedTuple):
    """Numbers of heads as levels.

    Attributes:
        codes: `[..., head_dim]` uint8: places in `LEVELS[bits]`; for 2 bits, of a trellis (`trellis`).
        scales: `[...]` float16: what a level of 1 is worth.
    """

    codes: UInt8[Tensor, "*tokens head_dim"]
    scales: Float[Tensor, "*tokens"]


def encode_levels(x: Float[Tensor, "*tokens head_dim"], bits: int) -> Levels:
    """Levels of each token and head by itself, after a Walsh-Hadamard rotation, which makes its numbers bell-shaped.

    CHOICE: of several scales, each fitted to its own codes by least squares, the one with the smallest error. Four
    levels are too few for that: 2 bits are codes of a trellis, in the same bytes.
    """
    rotated = hadamard(x.float())
    if bits == 2:
        return _in_a_trellis(rotated)
    heads = rotated.flatten(0, -2)
    parts = [_with_the_best_clip(part, bits) for part in heads.split(max(1, AT_ONCE // heads.shape[-1]))]
    codes, scales = (torch.cat(each) for each in zip(*parts, strict=True))
    return Levels(codes.view(rotated.shape), scales.view(rotated.shape[:-1]))


def _with_the_best_clip(rotated: Float[Tensor, "heads head_dim"], bits: int) -> Levels:
    outer = rotated.abs().amax(-1) / LEVELS[bits][-1]
    clips = torch.tensor(CLIPS, device=rotated.device)[:, None]
    levels = _levels(_nearest(rotated, clips * outer, bits), bits)
    scales = ((rotated * levels).sum(-1) / levels.square().sum(-1)).to(torch.float16)
    codes = _nearest(rotated, scales.float(), bits)
    best = (_levels(codes, bits) * scales.float()[..., None] - rotated).square().sum(-1).argmin(0, keepdim=True)
    return Levels(codes.take_along_dim(best[..., None], 0)[0], scales.take_along_dim(best, 0)[0])


def decode_levels(levels: Levels, bits: int) -> Float[Tensor, "*tokens head_dim"]:
    """The inverse of `encode_levels`, up to the levels' precision; float32."""
    numbers = decode_trellis(levels.codes) if bits == 2 else _levels(levels.codes, bits)
    return hadamard(numbers * levels.scales.float()[..., None])


def _in_a_trellis(rotated: Float[Tensor, "*tokens head_dim"]) -> Levels:
    """Encoded twice: scaled by the head's own deviation, then by what the first codes show to be the best scale."""
    scales = rotated.square().mean(-1).sqrt()
    for _ in range(2):
        codes = encode_trellis(rotated / scales[..., None].clamp_min(SMALLEST))
        levels = decode_trellis(codes)
        scales = ((rotated * levels).sum(-1) / levels.square().sum(-1)).clamp_min(0)
    return Levels(codes, scales.to(torch.float16))


def _nearest(
    x: Float[Tensor, "heads head_dim"], scales: Float[Tensor, "clips heads"], bits: int
) -> UInt8[Tensor, "clips heads head_dim"]:
    borders = torch.tensor([(a + b) / 2 for a, b in pairwise(LEVELS[bits])], device=x.device)
    return torch.bucketize((x / scales[..., None].clamp_min(SMALLEST)).contiguous(), borders).to(torch.uint8)


def _levels(codes: UInt8[Tensor, "*tokens head_dim"], bits: int) -> Float[Tensor, "*tokens head_dim"]:
    return torch.tensor(LEVELS[bits], device=codes.device)[codes.long()]
