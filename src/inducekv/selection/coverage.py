"""Spectral coverage: entries whose retrieval keys point in many directions are worth more than near-duplicates."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Num
from torch import Tensor


def orthonormal_projection(dimensions: int, key_dim: int, seed: int) -> Float[Tensor, "dimensions key_dim"]:
    """P of Omega(w): orthonormal rows drawn from a seed (CHOICE: uniformly, by QR of a Gaussian matrix).

    Args:
        dimensions: D'; more than `key_dim` means `key_dim`.
        key_dim: width of a retrieval key.
        seed: of the draw.

    Returns:
        `[min(dimensions, key_dim), key_dim]` float32.
    """
    generator = torch.Generator().manual_seed(seed)
    gaussian = torch.randn(key_dim, min(dimensions, key_dim), generator=generator, dtype=torch.float64)
    orthonormal, triangular = torch.linalg.qr(gaussian)
    return (orthonormal * triangular.diagonal().sign()).T.float().contiguous()


@dataclass(frozen=True)
class Coverage:
    """Omega(w) = -log det(C(w) + epsilon I), C(w) = sum_i share_i (P r_i)(P r_i)^T (specs/inducekv.md, section 3).

    share_i is w_i / B in the paper. CHOICE: with entries of different size share_i = costs_i w_i / total, which is the
    same when sizes are equal.

    Attributes:
        projected: `[entries, dimensions]` float, the projected keys P r_i.
        costs: `[entries]` bytes of each entry.
        total: bytes to spend.
        epsilon: ridge, positive.
    """

    projected: Float[Tensor, "entries dimensions"]
    costs: Num[Tensor, " entries"]
    total: int | float
    epsilon: float

    @classmethod
    def of_keys(
        cls,
        keys: Float[Tensor, "entries key_dim"],
        costs: Num[Tensor, " entries"],
        total: int | float,
        *,
        dimensions: int,
        epsilon: float,
        seed: int,
    ) -> "Coverage":
        """Coverage of retrieval keys `[entries, key_dim]`, projected to `dimensions` by a seeded orthonormal P."""
        projection = orthonormal_projection(dimensions, keys.shape[-1], seed)
        return cls(keys.float() @ projection.to(keys.device).T, costs, total, epsilon)

    def ridge(self) -> Float[Tensor, "dimensions dimensions"]:
        """epsilon I, float64."""
        return self.epsilon * torch.eye(self.projected.shape[1], dtype=torch.float64, device=self.projected.device)

    def shares(self, weights: Float[Tensor, " entries"]) -> Float[Tensor, " entries"]:
        """The part of the budget that each entry's weight spends, float64."""
        return weights.double() * self.costs.double() / max(self.total, 1.0)

    def __call__(self, weights: Float[Tensor, " entries"]) -> Float[Tensor, ""]:
        """Omega(w), computed in float64, differentiable; lower is better."""
        projected = self.projected.double()
        covariance = projected.T @ (self.shares(weights).unsqueeze(1) * projected)
        return -torch.linalg.slogdet(covariance + self.ridge()).logabsdet.to(weights.dtype)
