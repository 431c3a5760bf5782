"""Keys as a radius and angles: codes that logits can be computed from without making the key again."""

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from inducekv.compression.bits import from_stream, packed_bytes, to_bytes, to_stream

DEVIATIONS = (0.337, 0.251, 0.173, 0.125, 0.089, 0.063)
"""Standard deviation of the angles of levels 2 to 7 around pi/4, for normal keys (specs section 6); see `deviation`."""

Bits = tuple[int, ...]
"""Bits of an angle on levels 1, 2, ...; the last one holds for all levels after it."""


class PolarCodes(NamedTuple):
    """Keys `[..., head_dim]` in polar codes.

    Attributes:
        radii: `[..., blocks]` float16.
        angles: `[..., bytes]` uint8, level by level.
    """

    radii: Float[Tensor, "*batch blocks"]
    angles: UInt8[Tensor, "*batch bytes"]


def block_of(head_dim: int) -> int:
    """Dimensions that share a radius: the largest power of two that divides the head's.

    Raises:
        ValueError: `head_dim` is odd.
    """
    if head_dim % 2:
        raise ValueError(f"polar codes pair dimensions; head_dim must be even, got {head_dim}")
    return head_dim & -head_dim


def level_bits(head_dim: int, bits: Bits) -> list[tuple[int, int]]:
    """Angles and bits of an angle, level by level."""
    block = block_of(head_dim)
    levels = range(int(math.log2(block)))
    return [(head_dim >> (level + 1), bits[min(level, len(bits) - 1)]) for level in levels]


def key_bytes(head_dim: int, bits: Bits) -> int:
    """Bytes of one key in polar codes."""
    return 2 * (head_dim // block_of(head_dim)) + packed_bytes(sum(n * b for n, b in level_bits(head_dim, bits)), 1)


Grid = Callable[[int, int, Tensor], Float[Tensor, " codes"]]
"""The angles, ascending, that codes of a level (1, 2, ...) stand for, by level and bits, on the device of a tensor."""


def deviation(level: int) -> float:
    """Standard deviation of the angles of a level from 2 up around pi/4: each level's is 2^-1/2 of that before."""
    return DEVIATIONS[level - 2] if level < 8 else 2.0 ** (-(level + 1) / 2)


def even_grid(level: int, bits: int, like: Tensor) -> Float[Tensor, " codes"]:
    """Even steps (a `Grid`).

    Level 1 turns all the way round; later angles gather around pi/4, ever closer, and so does their grid: 2.5 standard
    deviations to each side, 1.5 for 2 bits and fewer.
    """
    steps = torch.arange(2**bits, device=like.device, dtype=torch.float32)
    if level == 1:
        return steps * (2 * math.pi / 2**bits)
    reach = (2.5 if bits > 2 else 1.5) * deviation(level)
    return math.pi / 4 - reach + (steps + 0.5) * (2 * reach / 2**bits)


def polar_encode(x: Float[Tensor, "*batch head_dim"], bits: Bits, grid: Grid = even_grid) -> PolarCodes:
    """Codes of keys: neighbours become radius and angle, then neighbouring radii, up to one radius a block.

    Angles are rounded to the nearest of their grid; radii are those of the exact keys.
    """
    block = block_of(x.shape[-1])
    radii, stream = x.float().unflatten(-1, (-1, block)), []
    for level, (_, width) in enumerate(level_bits(x.shape[-1], bits), 1):
        first, second = radii[..., ::2], radii[..., 1::2]
        angles = torch.atan2(second, first)
        radii = torch.hypot(first, second)
        points = grid(level, width, x)
        if level == 1:
            codes = (angles / (points[1] - points[0])).round() % 2**width
        else:
            codes = torch.bucketize(angles, (points[1:] + points[:-1]) / 2)
        stream.append(to_stream(codes.to(torch.uint8).flatten(-2), width))
    return PolarCodes(radii.squeeze(-1).to(torch.float16), to_bytes(torch.cat(stream, -1)))


def _angles(codes: PolarCodes, head_dim: int, bits: Bits, grid: Grid) -> list[tuple[Tensor, Tensor]]:
    """cos and sin `[..., blocks, angles]` of every level, looked up in tables of 2^bits entries."""
    stream, tables, first = to_stream(codes.angles, 8), [], 0
    for level, (count, width) in enumerate(level_bits(head_dim, bits), 1):
        index = from_stream(stream[..., first : first + count * width], width).long()
        first += count * width
        points = grid(level, width, codes.radii)
        index = index.unflatten(-1, (codes.radii.shape[-1], -1))
        tables.append((points.cos()[index], points.sin()[index]))
    return tables


def polar_decode(
    codes: PolarCodes, head_dim: int, bits: Bits, grid: Grid = even_grid
) -> Float[Tensor, "*batch head_dim"]:
    """The keys that codes stand for, float32."""
    x = codes.radii.float()[..., None]
    for cos, sin in reversed(_angles(codes, head_dim, bits, grid)):
        x = torch.stack([x * cos, x * sin], -1).flatten(-2)
    return x.flatten(-2)


def polar_logits(
    queries: Float[Tensor, "*batch queries head_dim"], codes: PolarCodes, bits: Bits
) -> Float[Tensor, "*batch queries keys"]:
    """`queries @ keys` from the codes alone: the recursion runs on the query, and no key is made (specs section 6).

    Args:
        codes: of keys `[*batch, keys, head_dim]`.
    """
    width = queries.shape[-1]
    c = queries.float()[..., :, None, :].unflatten(-1, (codes.radii.shape[-1], -1))
    for cos, sin in _angles(codes, width, bits, even_grid):
        c = c[..., ::2] * cos[..., None, :, :, :] + c[..., 1::2] * sin[..., None, :, :, :]
    return (c.squeeze(-1) * codes.radii.float()[..., None, :, :]).sum(-1)
