"""A prompt as Spherical KV holds it: tokens of several precisions, keys as polar codes."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from inducekv.compression.bits import Codes, decode, encode
from inducekv.compression.hadamard import hadamard
from inducekv.compression.polar import PolarCodes, polar_decode, polar_encode
from inducekv.compression.spherical_plan import Tier


@dataclass(frozen=True)
class Coded:
    """The tokens of one tier: polar codes of the keys, codes of the values."""

    tier: Tier
    keys: PolarCodes
    values: Codes

    def dense(self, signs: Tensor) -> tuple[Tensor, Tensor]:
        width = signs.shape[0]
        values = hadamard(decode(self.values, self.tier.value_bits, width))
        return hadamard(polar_decode(self.keys, width, self.tier.angles)) * signs, values


def coded_in(tier: Tier, keys: Tensor, values: Tensor, signs: Tensor) -> Coded:
    width = keys.shape[-1]
    return Coded(
        tier,
        polar_encode(hadamard(keys.float() * signs), tier.angles),
        encode(hadamard(values.float()), tier.value_bits, group=width),
    )


@dataclass(frozen=True)
class SphericalPrefix:
    """A prompt's exact tokens and those of each tier, in this order, in one layer (`layer.Prefix`).

    Attributes:
        keys, values: of the exact tokens, `[batch, kv_heads, exact, head_dim]`.
    """

    keys: Float[Tensor, "batch kv_heads exact head_dim"]
    values: Float[Tensor, "batch kv_heads exact head_dim"]
    coded: tuple[Coded, ...]
    signs: Float[Tensor, " head_dim"]

    def dense(self) -> tuple[Tensor, Tensor]:
        parts = [(self.keys, self.values), *(c.dense(self.signs) for c in self.coded)]
        keys, values = (torch.cat([x.to(self.keys) for x in each], 2) for each in zip(*parts, strict=True))
        return keys, values

    def tensors(self) -> list[Tensor]:
        return [self.keys, self.values, *(x for c in self.coded for x in (*c.keys, *c.values))]

    def rows(self, change: Callable[[Tensor], Tensor]) -> "SphericalPrefix":
        coded = tuple(
            Coded(c.tier, PolarCodes(*map(change, c.keys)), Codes(*map(change, c.values))) for c in self.coded
        )
        return dataclasses.replace(self, keys=change(self.keys), values=change(self.values), coded=coded)
