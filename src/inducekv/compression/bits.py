"""Numbers in few bits: asymmetric codes with a scale and a minimum for each group, packed without a gap."""

from typing import NamedTuple

import torch
from jaxtyping import Float, UInt8
from torch import Tensor


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` codes of `bits` bits take."""
    return (count * bits + 7) // 8


def to_stream(codes: UInt8[Tensor, "*batch count"], bits: int) -> UInt8[Tensor, "*batch stream"]:
    """The single bits of codes below 2^bits, lowest first."""
    shifts = torch.arange(bits, device=codes.device, dtype=torch.uint8)
    return ((codes[..., None] >> shifts) & 1).flatten(-2)


def from_stream(stream: UInt8[Tensor, "*batch stream"], bits: int) -> UInt8[Tensor, "*batch count"]:
    """The inverse of `to_stream`."""
    shifts = torch.arange(bits, device=stream.device, dtype=torch.uint8)
    return (stream.unflatten(-1, (-1, bits)) << shifts).sum(-1, dtype=torch.uint8)


def to_bytes(stream: UInt8[Tensor, "*batch stream"]) -> UInt8[Tensor, "*batch packed"]:
    """Eight single bits to a byte; the last byte of a row is filled up with zeros."""
    return from_stream(torch.nn.functional.pad(stream, (0, -stream.shape[-1] % 8)), 8)


def pack(codes: UInt8[Tensor, "*batch count"], bits: int) -> UInt8[Tensor, "*batch packed"]:
    """Codes below 2^bits without a gap between them."""
    return to_bytes(to_stream(codes, bits))


def unpack(packed: UInt8[Tensor, "*batch packed"], bits: int, count: int) -> UInt8[Tensor, "*batch count"]:
    """The inverse of `pack`."""
    if 8 % bits == 0:  # no code lies in two bytes: whole codes are shifted out, an eighth of the work
        shifts = torch.arange(0, 8, bits, device=packed.device, dtype=torch.uint8)
        return ((packed[..., None] >> shifts) & (2**bits - 1)).flatten(-2)[..., :count]
    return from_stream(to_stream(packed, 8)[..., : count * bits], bits)


class Codes(NamedTuple):
    """Quantised numbers `[..., channels]`.

    Attributes:
        packed: `[..., bytes]` uint8.
        scales: `[..., groups, 2]` float16: what one step is worth, and the lowest number.
    """

    packed: UInt8[Tensor, "*batch bytes"]
    scales: Float[Tensor, "*batch groups 2"]

    @property
    def nbytes(self) -> int:
        return self.packed.numel() + 2 * self.scales.numel()


def encode(x: Float[Tensor, "*batch channels"], bits: int, *, group: int, clip: float = 1.0) -> Codes:
    """Codes of each row's successive groups of channels (RotateKV, specs section 5: asymmetric, clipped).

    The range of a group is `clip` times its smallest and largest number; a step is at least large enough that float16
    holds it (2^-24). Steps and minima are rounded before codes are made.

    Args:
        bits: 2, 3, 4 or up to 8.
        group: channels that share a scale; it divides the channels.
        clip: the share of the range that is covered; numbers beyond it are cut.
    """
    grouped = x.float().unflatten(-1, (-1, group))
    low, high = (clip * f(grouped, dim=-1) for f in (torch.amin, torch.amax))
    low = low.to(torch.float16)
    step = ((high - low.float()) / (2**bits - 1)).clamp_min(2.0**-24)
    step = step.to(torch.float16)
    codes = ((grouped - low.float()[..., None]) / step.float()[..., None]).round().clamp(0, 2**bits - 1)
    return Codes(pack(codes.to(torch.uint8).flatten(-2), bits), torch.stack([step, low], -1))


def decode(codes: Codes, bits: int, channels: int) -> Float[Tensor, "*batch channels"]:
    """The inverse of `encode`, up to half a step inside the range. Float32."""
    numbers = unpack(codes.packed, bits, channels).float().unflatten(-1, (codes.scales.shape[-2], -1))
    step, low = codes.scales.float().unbind(-1)
    return (numbers * step[..., None] + low[..., None]).flatten(-2)
