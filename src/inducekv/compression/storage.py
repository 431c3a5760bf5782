"""How payload numbers are stored: as floats, or in 8, 4, 3 or 2 bits with one float16 scale a token and head."""

from typing import NamedTuple, get_args

import torch
from jaxtyping import Float, Num
from torch import Tensor

from inducekv.compression.bits import pack, packed_bytes, unpack
from inducekv.compression.gaussian import Levels, decode_levels, encode_levels
from inducekv.compression.polar import PolarCodes
from inducekv.compression.polar_payload import POLAR_BITS, decode_polar, encode_polar
from inducekv.config import PayloadDtype
from inducekv.error_text import shown

STORAGE_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "int4": torch.uint8,
    "int3": torch.uint8,
    "int2": torch.uint8,
    "levels4": torch.uint8,
    "polar4": torch.uint8,
    "polar3": torch.uint8,
}
"""Number format of the stored values by its name in the configuration; codes of fewer than 8 bits are packed."""

BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2, "levels4": 4, "polar4": 4, "polar3": 3}
"""Bits of a number, for formats that have scales."""
OF_LEVELS = ("levels4", "int3", "int2")
"""Formats whose codes are levels of the rotated head."""
LARGEST = {"int8": 127, "int4": 7}
"""Largest code. CHOICE: symmetric, with a zero; 3 and 2 bits are too few for even steps (see `gaussian`)."""


class Stored(NamedTuple):
    """Payload numbers as they lie in the memory file.

    Attributes:
        values: `[..., stored_width]` in the storage dtype (see `stored_width`).
        scales: `[...]` float16, not for floats: what a code of 1 is worth; for levels, a level of 1; for polar codes,
            the head's radius.
    """

    values: Num[Tensor, "*tokens stored"]
    scales: Float[Tensor, "*tokens"] | None


def stored_width(head_dim: int, dtype: PayloadDtype | str) -> int:
    """Elements of the storage dtype that `head_dim` numbers take: codes of fewer than 8 bits are packed."""
    return packed_bytes(head_dim, BITS.get(dtype, 8))


def check_format(dtype: PayloadDtype | str, head_dim: int) -> None:
    """
    Raises:
        ValueError: there is no such format, or it cannot hold heads of `head_dim` numbers.
    """
    if dtype not in STORAGE_DTYPES:
        raise ValueError(f"payload_dtype must be one of {', '.join(get_args(PayloadDtype))}; got {shown(dtype)}")
    if dtype in POLAR_BITS and (head_dim < 2 or head_dim & (head_dim - 1)):
        raise ValueError(
            f"payload_dtype {dtype} halves a head until one radius is left, so its dimension must be a power of two; "
            f"this model's is {head_dim}: use payload_dtype='int3' (or 'levels4')"
        )


def quantise(tensor: Float[Tensor, "*tokens head_dim"], dtype: PayloadDtype | str) -> Stored:
    """Writes payload numbers in a storage format.

    CHOICE: "int8" and "int4" are symmetric, in even steps, scaled by a head's largest number; "levels4", "int3" and
    "int2" are levels of the rotated head (`gaussian.encode_levels`); "polar4" and "polar3" its radius and angles
    (`polar_payload.encode_polar`).

    Args:
        tensor: `[..., head_dim]`, any float dtype; usually `[tokens, layers, kv_heads, head_dim]`.
        dtype: one of `STORAGE_DTYPES`.

    Raises:
        ValueError: as `check_format`, numbers that are not finite, or numbers too large for float16.
    """
    check_format(dtype, tensor.shape[-1])
    if not torch.isfinite(tensor).all():
        raise ValueError("a payload holds numbers that are not finite; the model overflowed on this example")
    stored = _codes(tensor, dtype) if dtype in BITS else Stored(tensor.to(STORAGE_DTYPES[dtype]).contiguous(), None)
    if not torch.isfinite(stored.values if stored.scales is None else stored.scales).all():
        raise ValueError(f"a payload holds numbers too large for {dtype}; use payload_dtype='bfloat16'")
    return stored


def _codes(tensor: Float[Tensor, "*tokens head_dim"], dtype: str) -> Stored:
    if dtype in OF_LEVELS:
        levels = encode_levels(tensor, BITS[dtype])
        return Stored(pack(levels.codes, BITS[dtype]), levels.scales)
    if dtype in POLAR_BITS:
        polar = encode_polar(tensor, dtype)
        return Stored(polar.angles, polar.radii.squeeze(-1))
    numbers, largest = tensor.float(), LARGEST[dtype]
    scales = (numbers.abs().amax(-1) / largest).to(torch.float16)
    steps = scales.float().unsqueeze(-1)
    ratios = torch.where(steps > 0, numbers / steps.clamp_min(torch.finfo(torch.float32).tiny), 0.0)
    codes = ratios.round().clamp(-largest, largest)
    if dtype == "int8":
        return Stored(codes.to(torch.int8), scales)
    return Stored(pack((codes + largest).to(torch.uint8), BITS[dtype]), scales)


def dequantise(
    values: Num[Tensor, "*tokens stored"],
    scales: Float[Tensor, "*tokens"] | None,
    dtype: PayloadDtype | str,
    head_dim: int,
) -> Float[Tensor, "*tokens head_dim"]:
    """The inverse of `quantise`, up to the format's precision.

    Returns:
        `[..., head_dim]` float32.

    Raises:
        ValueError: a format that has scales, without them.
    """
    if dtype not in BITS:
        return values.to(torch.float32)
    if scales is None:
        raise ValueError(f"{dtype} payloads need their scales")
    if dtype in POLAR_BITS:
        return decode_polar(PolarCodes(scales[..., None], values), head_dim, dtype)
    if dtype in OF_LEVELS:
        return decode_levels(Levels(unpack(values, BITS[dtype], head_dim), scales), BITS[dtype])
    if dtype == "int4":
        numbers = unpack(values, 4, head_dim).to(torch.float32) - LARGEST[dtype]
    else:
        numbers = values.to(torch.float32)
    return numbers * scales.to(torch.float32).unsqueeze(-1)
