"""Few bits after a rotation: asymmetric codes of a whole head, whose outlying channels are spread first."""

import torch
from jaxtyping import Float
from torch import Tensor

from inducekv.compression.bits import Codes, decode, encode
from inducekv.compression.hadamard import hadamard

CLIPS = (1.0, 0.9, 0.8, 0.7, 0.6, 0.5)
"""Shares of a head's range that are tried; the one with the smallest error is taken. CHOICE."""


def encode_rotated(x: Float[Tensor, "*tokens head_dim"], bits: int) -> Codes:
    """Codes of each token and head by itself, after a Walsh-Hadamard rotation (RotateKV, specs section 5).

    Raises:
        ValueError: numbers too large for the float16 scales.
    """
    width, rotated = x.shape[-1], hadamard(x.float())
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
        raise ValueError("a payload holds numbers too large for float16 scales; keep it in 'bfloat16'")
    return best


def decode_rotated(codes: Codes, bits: int, head_dim: int) -> Float[Tensor, "*tokens head_dim"]:
    """The inverse of `encode_rotated`, up to the codes' precision; float32."""
    return hadamard(decode(codes, bits, head_dim))
