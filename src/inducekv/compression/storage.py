"""How payload numbers are stored: as floats, or as 8-, 4-, 3- or 2-bit integers with one scale a token and head."""

from typing import NamedTuple, get_args

import torch
from jaxtyping import Float, Num
from torch import Tensor

from inducekv.compression.bits import pack, packed_bytes, unpack
from inducekv.compression.gaussian import Levels, decode_levels, encode_levels
from inducekv.config import PayloadDtype

STORAGE_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
    "int4": torch.uint8,
    "int3": torch.uint8,
    "int2": torch.uint8,
}
"""Number format of the stored values by its name in the configuration; codes of fewer than 8 bits are packed."""

BITS = {"int8": 8, "int4": 4, "int3": 3, "int2": 2}
"""Bits of a code, for formats that have scales."""
OF_LEVELS = ("int3", "int2")
"""Formats whose codes are levels of the rotated head."""
LARGEST = {"int8": 127, "int4": 7}
"""Largest code. CHOICE: symmetric, with a zero; 3 and 2 bits are too few for even steps (see `gaussian`)."""


class Stored(NamedTuple):
    """Payload numbers as they lie in the memory file.

    Attributes:
        values: `[..., stored_width]` in the storage dtype (see `stored_width`).
        scales: `[...]` float16, only for integer formats: what a code of 1 (3 and 2 bits: a level of 1) is worth.
    """

    values: Num[Tensor, "*tokens stored"]
    scales: Float[Tensor, "*tokens"] | None


def stored_width(head_dim: int, dtype: PayloadDtype | str) -> int:
    """Elements of the storage dtype that `head_dim` numbers take: codes of fewer than 8 bits are packed."""
    return packed_bytes(head_dim, BITS.get(dtype, 8))


def quantise(tensor: Float[Tensor, "*tokens head_dim"], dtype: PayloadDtype | str) -> Stored:
    """Writes payload numbers in a storage format.

    CHOICE: 8 and 4 bits are symmetric, in even steps, scaled by a head's largest number; 3 and 2 bits are levels
    of the rotated head (`gaussian.encode_levels`).

    Args:
        tensor: `[..., head_dim]`, any float dtype; usually `[tokens, layers, kv_heads, head_dim]`.
        dtype: "float32", "float16", "bfloat16", "int8", "int4", "int3" or "int2".

    Raises:
        ValueError: an unknown dtype, numbers that are not finite, or numbers too large for float16.
    """
    if dtype not in STORAGE_DTYPES:
        raise ValueError(f"payload dtype must be one of {', '.join(get_args(PayloadDtype))}; got {dtype!r}")
    if not torch.isfinite(tensor).all():
        raise ValueError("a payload holds numbers that are not finite; the model overflowed on this example")
    if dtype not in BITS:
        values = tensor.to(STORAGE_DTYPES[dtype])
        if not torch.isfinite(values).all():
            raise ValueError(f"a payload holds numbers too large for {dtype}; use payload_dtype='bfloat16' or 'int8'")
        return Stored(values.contiguous(), None)
    if dtype in OF_LEVELS:
        levels = encode_levels(tensor, BITS[dtype])
        return Stored(pack(levels.codes, BITS[dtype]), levels.scales)
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
    """
    if dtype in OF_LEVELS:
        if scales is None:
            raise ValueError(f"{dtype} payloads need their scales")
        return decode_levels(Levels(unpack(values, BITS[dtype], head_dim), scales), BITS[dtype])
    if dtype == "int4":
        numbers = unpack(values, 4, head_dim).to(torch.float32) - LARGEST[dtype]
    else:
        numbers = values.to(torch.float32)
    return numbers if scales is None else numbers * scales.to(torch.float32).unsqueeze(-1)
