"""How payload numbers are stored: as floats, as 8-bit integers, or packed in 2 to 4 bits after a rotation."""

from typing import NamedTuple

import torch
from jaxtyping import Float, Num
from torch import Tensor

from inducekv.compression.bits import Codes, decode, encode, packed_bytes
from inducekv.compression.hadamard import hadamard

STORAGE_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "int4": torch.uint8,
    "int3": torch.uint8,
    "int2": torch.uint8,
}
"""Number format of the stored values by its name in the configuration; packed codes are bytes."""

PACKED_BITS = {"int4": 4, "int3": 3, "int2": 2}
"""Bits a number takes, in formats that pack several into a byte."""

CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Shares of a head's range that packed formats try; the one with the smallest error is taken."""

_LARGEST_CODE = 127


class Stored(NamedTuple):
    """Payload numbers as they lie in the memory file.

    Attributes:
        values: `[..., head_dim]` in the storage dtype, or packed `[..., packed_bytes(head_dim, bits)]` uint8.
        scales: `[...]` float16 for int8: what one step of the code is worth. `[..., 2]` float16 for packed formats: the
            step and the lowest number. None for floats.
    """

    values: Num[Tensor, "*tokens head_dim"]
    scales: Float[Tensor, "*scales"] | None


def stored_bytes(heads: int, head_dim: int, dtype: str) -> int:
    """Bytes that `quantise` makes of `heads` vectors of `head_dim` numbers (tokens x layers x KV heads x 2 in all).

    Floats: `heads * head_dim * itemsize`. int8: `heads * (head_dim + 2)`. Packed in b bits:
    `heads * (ceil(head_dim * b / 8) + 4)`.

    Raises:
        ValueError: an unknown dtype.
    """
    _check(dtype)
    if dtype in PACKED_BITS:
        return heads * (packed_bytes(head_dim, PACKED_BITS[dtype]) + 4)
    return heads * (head_dim * STORAGE_DTYPES[dtype].itemsize + (2 if dtype == "int8" else 0))


def quantise(tensor: Float[Tensor, "*tokens head_dim"], dtype: str) -> Stored:
    """Writes payload numbers in a storage format, every token and head by itself.

    CHOICES: int8 is symmetric, scaled by a head's largest number. int4, int3 and int2 are asymmetric codes of the head
    after a Walsh-Hadamard rotation, which spreads outlying channels (RotateKV, specs section 5), with the share of the
    range that gives the smallest squared error.

    Args:
        tensor: `[..., head_dim]`, any float dtype; usually `[tokens, layers, kv_heads, head_dim]`.
        dtype: "float32", "float16", "bfloat16", "int8", "int4", "int3" or "int2".

    Raises:
        ValueError: an unknown dtype, numbers that are not finite, or numbers too large for float16.
    """
    _check(dtype)
    if not torch.isfinite(tensor).all():
        raise ValueError("a payload holds numbers that are not finite; the model overflowed on this example")
    if dtype in PACKED_BITS:
        return _packed(tensor, PACKED_BITS[dtype])
    if dtype != "int8":
        values = tensor.to(STORAGE_DTYPES[dtype])
        if not torch.isfinite(values).all():
            raise ValueError(f"a payload holds numbers too large for {dtype}; use payload_dtype='bfloat16' or 'int8'")
        return Stored(values.contiguous(), None)
    numbers = tensor.float()
    scales = (numbers.abs().amax(-1) / _LARGEST_CODE).to(torch.float16)
    steps = scales.float().unsqueeze(-1)
    codes = torch.where(steps > 0, numbers / steps.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
    return Stored(codes.round().clamp(-_LARGEST_CODE, _LARGEST_CODE).to(torch.int8), scales)


def dequantise(
    values: Num[Tensor, "*tokens stored"], scales: Float[Tensor, "*scales"] | None, *, head_dim: int | None = None
) -> Float[Tensor, "*tokens head_dim"]:
    """The inverse of `quantise`, up to the format's precision.

    Args:
        values, scales: what `quantise` gave.
        head_dim: needed for packed formats, whose bytes do not say how many numbers they hold.

    Returns:
        `[..., head_dim]` float32.

    Raises:
        ValueError: packed values without `head_dim`, or of a length that no packed format gives.
    """
    if values.dtype == torch.uint8:
        fitting = [b for b in PACKED_BITS.values() if head_dim and packed_bytes(head_dim, b) == values.shape[-1]]
        if scales is None or not fitting or head_dim is None:
            raise ValueError(
                f"packed values of {values.shape[-1]} bytes a head need their scales and the head_dim they were made "
                f"of; got head_dim={head_dim}"
            )
        return hadamard(decode(Codes(values, scales[..., None, :]), fitting[0], head_dim))
    numbers = values.to(torch.float32)
    return numbers if scales is None else numbers * scales.to(torch.float32).unsqueeze(-1)


def _packed(tensor: Tensor, bits: int) -> Stored:
    width = tensor.shape[-1]
    rotated = hadamard(tensor.float())
    best, least = None, None
    for clip in CLIPS:
        codes = encode(rotated, bits, group=width, clip=clip)
        error = (decode(codes, bits, width) - rotated).square().sum(-1)
        if best is None or least is None:
            best, least = codes, error
            continue
        better = error < least
        least = torch.where(better, error, least)
        best = Codes(
            torch.where(better[..., None], codes.packed, best.packed),
            torch.where(better[..., None, None], codes.scales, best.scales),
        )
    assert best is not None
    if not torch.isfinite(best.scales).all():
        raise ValueError("a payload holds numbers too large for the float16 scales of packed formats; use 'bfloat16'")
    return Stored(best.packed, best.scales[..., 0, :])


def _check(dtype: str) -> None:
    if dtype not in STORAGE_DTYPES:
        raise ValueError(f"payload dtype must be one of {', '.join(STORAGE_DTYPES)}; got {dtype!r}")
