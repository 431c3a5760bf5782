"""How payload numbers are stored: as floats, or as 8-bit integers with one scale a token and head."""

from typing import NamedTuple, get_args

import torch
from jaxtyping import Float, Num
from torch import Tensor

from inducekv.config import PayloadDtype

STORAGE_DTYPES: dict[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
    "int8": torch.int8,
}
"""Number format of the stored values by its name in the configuration."""

_LARGEST_CODE = 127


class Stored(NamedTuple):
    """Payload numbers as they lie in the memory file.

    Attributes:
        values: `[..., head_dim]` in the storage dtype.
        scales: `[...]` float16, only for int8: what one step of the code is worth.
    """

    values: Num[Tensor, "*tokens head_dim"]
    scales: Float[Tensor, "*tokens"] | None


def quantise(tensor: Float[Tensor, "*tokens head_dim"], dtype: PayloadDtype | str) -> Stored:
    """Writes payload numbers in a storage format (CHOICE: int8 is symmetric, scaled by a head's largest number).

    Args:
        tensor: `[..., head_dim]`, any float dtype; usually `[tokens, layers, kv_heads, head_dim]`.
        dtype: "float32", "float16", "bfloat16" or "int8".

    Raises:
        ValueError: an unknown dtype, numbers that are not finite, or numbers too large for float16.
    """
    if dtype not in STORAGE_DTYPES:
        raise ValueError(f"payload dtype must be one of {', '.join(get_args(PayloadDtype))}; got {dtype!r}")
    if not torch.isfinite(tensor).all():
        raise ValueError("a payload holds numbers that are not finite; the model overflowed on this example")
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
    values: Num[Tensor, "*tokens head_dim"], scales: Float[Tensor, "*tokens"] | None
) -> Float[Tensor, "*tokens head_dim"]:
    """The inverse of `quantise`, up to the format's precision.

    Returns:
        `[..., head_dim]` float32.
    """
    numbers = values.to(torch.float32)
    return numbers if scales is None else numbers * scales.to(torch.float32).unsqueeze(-1)
