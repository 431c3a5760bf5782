"""The space in which retrieval keys are compared: as they are, centred, or whitened by the keys of the memory."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from inducekv.config import KeySpaceName

COMPONENTS = 32
"""Principal directions of the keys that whitening shortens, at most. CHOICE: on clinc150 and banking77 with
SmolLM2-135M, 16 to 128 differ by less than their error."""
SHRINKAGE = 0.85
"""Weight of the mean variance in what a direction is divided by; its own variance has the rest. CHOICE: less helps
large memories of many tasks, more helps small ones of one task."""
SAMPLE = 1024
"""Keys that the directions are found from, at most, evenly spread over the memory."""
SHORTEST = 1e-3
"""A key that is not farther than this from the mean says nothing: its similarity to any other is 0."""
AT_ONCE = 4096
"""Keys whose lengths are computed at a time."""


@dataclass(frozen=True)
class KeySpace:
    """How two retrieval keys are compared: `cos(W (a - mean), W (b - mean))`, with mean and W of the memory's keys.

    Hidden states lie in a narrow cone: what all questions share makes them alike. `"centred"` takes the mean off
    (CHOICE). `"whitened"` (CHOICE) also shortens the directions in which the memory's keys vary most,
    `W = I - V diag(1 - s) V^T`, `s_i^2 = k d / ((1 - k) e_i + k d)`, where e_i is the variance along the i-th of
    `COMPONENTS` principal directions V, d the mean variance of a dimension and k the `SHRINKAGE`.

    Attributes:
        mean: `[dim]`, or None: keys are compared as they are.
        directions: `[dim, components]` orthonormal; no components: centred only.
        scales: `[components]` s.
        lengths: `[n]` `|W (r - mean)|` of the keys it was made of.
    """

    mean: Float[Tensor, " dim"] | None
    directions: Float[Tensor, "dim components"]
    scales: Float[Tensor, " components"]
    lengths: Float[Tensor, " n"]

    @classmethod
    def of(cls, keys: Float[Tensor, "n dim"], name: KeySpaceName) -> "KeySpace":
        """The space of a memory's keys; fewer than two keys are compared as they are.

        Raises:
            ValueError: no space has that name.
        """
        if name not in ("raw", "centred", "whitened"):
            raise ValueError(f"key_space must be 'raw', 'centred' or 'whitened', got {name!r}")
        count, dim = keys.shape
        none = keys.new_zeros(dim, 0)
        if name == "raw" or count < 2:
            return cls(None, none, none[0], keys.new_ones(count))
        mean = keys.mean(0)
        directions, scales = none, none[0]
        if name == "whitened":
            directions, scales = _whitening(keys[:: -(-count // SAMPLE)] - mean)
        space = cls(mean, directions, scales, keys.new_ones(count))
        return cls(mean, directions, scales, torch.cat([space._length(some) for some in keys.split(AT_ONCE)]))

    def similarities(
        self, query_keys: Float[Tensor, "rows dim"], memory_keys: Float[Tensor, "n dim"]
    ) -> Float[Tensor, "rows n"]:
        """Inner products of unit keys in this space; `memory_keys` are those it was made of, in their order."""
        if self.mean is None:
            return query_keys @ memory_keys.to(query_keys).T
        mean = self.mean.to(query_keys)
        shifted = query_keys - mean
        twice = self._scaled(shifted, self.scales.square())
        dots = twice @ memory_keys.to(query_keys).T - (twice @ mean)[:, None]
        own, theirs = self._length(query_keys)[:, None], self.lengths.to(query_keys)
        told = (own > SHORTEST) & (theirs > SHORTEST)
        return torch.where(told, dots / torch.where(told, own * theirs, 1.0), 0.0)

    def _length(self, keys: Float[Tensor, "some dim"]) -> Float[Tensor, " some"]:
        assert self.mean is not None
        return self._scaled(keys - self.mean.to(keys), self.scales).norm(dim=-1)

    def _scaled(self, x: Float[Tensor, "some dim"], scales: Tensor) -> Float[Tensor, "some dim"]:
        directions = self.directions.to(x)
        return x - ((x @ directions) * (1 - scales.to(x))) @ directions.T


def _whitening(centred: Float[Tensor, "n dim"]) -> tuple[Tensor, Tensor]:
    """Principal directions and how much each is shortened; from the keys' inner products, whose size is n, not dim."""
    count, dim = centred.shape
    mean_variance = centred.square().sum() / count / dim
    variances, vectors = torch.linalg.eigh((centred @ centred.T / count).double())
    kept = min(COMPONENTS, count - 1, dim)
    variances, vectors = variances.flip(0)[:kept], vectors.flip(1)[:, :kept]
    real = variances > 1e-9 * variances[:1].clamp_min(torch.finfo(variances.dtype).tiny)
    variances, vectors = variances[real], vectors[:, real]
    directions = (centred.double().T @ vectors) / (count * variances).sqrt()
    scales = (SHRINKAGE * mean_variance / ((1 - SHRINKAGE) * variances + SHRINKAGE * mean_variance)).sqrt()
    return directions.to(centred.dtype), scales.to(centred.dtype)
