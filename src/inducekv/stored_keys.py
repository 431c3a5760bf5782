"""How retrieval keys are stored: as float16, or as the integer codes of their rotation; only their direction counts."""

from typing import get_args

import torch
from jaxtyping import Float, Float32, Num
from torch import Tensor
from torch.nn.functional import normalize

from inducekv.compression.bits import pack, packed_bytes, unpack
from inducekv.compression.gaussian import CLIPS
from inducekv.compression.hadamard import hadamard
from inducekv.compression.storage import LARGEST
from inducekv.config import KeyDtype
from inducekv.error_text import shown

KEY_DTYPES: dict[str, torch.dtype] = {"float16": torch.float16, "int8": torch.int8, "int4": torch.uint8}
"""Number format of stored keys by its name in the configuration; 4-bit codes lie packed in bytes."""


def check_key_dtype(key_dtype: KeyDtype | str) -> None:
    """
    Raises:
        ValueError: there is no such format.
    """
    if key_dtype not in get_args(KeyDtype):
        raise ValueError(f"key_dtype must be one of {', '.join(get_args(KeyDtype))}; got {shown(key_dtype)}")


def key_width(key_dim: int, key_dtype: KeyDtype | str) -> int:
    """Elements of the storage dtype that a key of `key_dim` numbers takes."""
    return packed_bytes(key_dim, 4) if key_dtype == "int4" else key_dim


def encode_key(key: Float[Tensor, " key_dim"], key_dtype: KeyDtype | str) -> Num[Tensor, " stored"]:
    """A unit-norm key as it lies in the file.

    CHOICE: integers are of the Walsh-Hadamard rotation, so that a hidden state's few large channels do not leave the
    others without codes. Codes need no scale, since keys are compared by direction; of several clips the one with the
    best direction is taken.

    Returns:
        `[key_width]` in `KEY_DTYPES[key_dtype]`.

    Raises:
        ValueError: an unknown format, or numbers that are not finite.
    """
    check_key_dtype(key_dtype)
    if key_dtype == "float16":
        return key.to(torch.float16)
    if not torch.isfinite(key).all():
        raise ValueError("a retrieval key holds numbers that are not finite; the model overflowed on this example")
    largest, rotated = LARGEST[key_dtype], hadamard(normalize(key.float(), dim=-1))
    outer = rotated.abs().amax().clamp_min(torch.finfo(torch.float32).tiny)
    tried = [(rotated / (clip * outer) * largest).round().clamp(-largest, largest) for clip in CLIPS]
    codes = max(tried, key=lambda codes: float(normalize(codes, dim=-1) @ rotated))
    return codes.to(torch.int8) if key_dtype == "int8" else pack((codes + largest).to(torch.uint8), 4)


def decode_keys(
    stored: Num[Tensor, "*batch stored"], key_dtype: KeyDtype | str, key_dim: int
) -> Float32[Tensor, "*batch key_dim"]:
    """Keys of unit norm, float32, from how they lie in the file."""
    if key_dtype == "float16":
        return normalize(stored.float(), dim=-1)
    codes = unpack(stored, 4, key_dim).float() - LARGEST["int4"] if key_dtype == "int4" else stored.float()
    return normalize(hadamard(codes), dim=-1)
