"""From a question's key to the entries it reads and their weights alpha."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import softplus

from inducekv.key_space import KeySpace

SMALLEST_WEIGHT = 1e-8
"""Ranking and weights treat a relaxed selection weight below this as zero; it keeps logarithms finite."""
UNSCALED = 100.0
"""phi_lambda that says lambda = 1: `sigmoid` of it is exactly 1 in every number format."""


@dataclass(frozen=True)
class Calibration:
    """phi: the L+1 scalars fitted to a stream (InduceKV, specs section 2), and the mass of memory (CHOICE).

    Attributes:
        phi_tau: `[]` float32; the retrieval temperature is `tau = softplus(phi_tau)`.
        phi_lambda: `[layers]` float32; memory values of layer l are scaled by `lambda_l = sigmoid(phi_l)`.
        mass: `[]` float32, added to the attention logits of all memory tokens; 0 leaves attention as it is. A softmax
            over a few memory tokens beside a sink and a long prompt otherwise gives memory too little.
    """

    phi_tau: Float[Tensor, ""]
    phi_lambda: Float[Tensor, "layers"]
    mass: Float[Tensor, ""] = field(default_factory=lambda: torch.zeros(()))

    @property
    def tau(self) -> Float[Tensor, ""]:
        """Retrieval temperature, > 0."""
        return softplus(self.phi_tau)

    @property
    def lambdas(self) -> Float[Tensor, "layers"]:
        """Scale of the memory's values in each layer, in [0, 1]."""
        return torch.sigmoid(self.phi_lambda)

    @classmethod
    def initial(cls, layers: int, temperature: float = 0.1, scale: float = 0.95, mass: float = 0.0) -> "Calibration":
        """A starting point that gradients can move: `tau = temperature`, `lambda = scale` (0 < scale < 1)."""
        if not temperature > 0 or not 0 < scale < 1:
            raise ValueError(f"temperature must be > 0 and scale in (0, 1); got {temperature} and {scale}")
        phi_tau = temperature + math.log(-math.expm1(-temperature))  # inverse softplus, exact for small values
        lambdas = torch.full((layers,), math.log(scale / (1 - scale)))
        return cls(torch.tensor(phi_tau), lambdas, torch.tensor(float(mass)))

    @classmethod
    def identity(cls, layers: int, temperature: float = 0.1) -> "Calibration":
        """`lambda = 1` exactly: memory values enter as they were stored."""
        return cls(cls.initial(layers, temperature).phi_tau, torch.full((layers,), UNSCALED))


@dataclass(frozen=True)
class Retrieved:
    """The entries each row reads, the best one LAST, so that it lies nearest the question.

    Attributes:
        indices: `[rows, k]` into the memory's entries.
        alpha: `[rows, k]` weights that sum to 1 over a row's valid slots; 0 where not valid.
        similarity: `[rows, k]` inner product of the row's key with the entry's.
        valid: `[rows, k]`; slots of a row that retrieves fewer than k entries are False, and come first.
    """

    indices: Int[Tensor, "rows k"]
    alpha: Float[Tensor, "rows k"]
    similarity: Float[Tensor, "rows k"]
    valid: Bool[Tensor, "rows k"]

    def rows(self, chosen: Tensor) -> "Retrieved":
        """Only some rows (indices `[n]`)."""
        return Retrieved(self.indices[chosen], self.alpha[chosen], self.similarity[chosen], self.valid[chosen])


def retrieve(
    query_keys: Float[Tensor, "rows dim"],
    memory_keys: Float[Tensor, "n dim"],
    tau: Float[Tensor, ""] | float,
    *,
    top_k: int | None,
    weights: Float[Tensor, "n"] | None = None,
    exclude: Bool[Tensor, "rows n"] | None = None,
    thresholds: Float[Tensor, "n"] | None = None,
    space: KeySpace | None = None,
) -> Retrieved:
    """Pick the entries each row reads and their weights: alpha_i ~ w_i exp(<r(x), r_i> / tau).

    InduceKV, specs section 2 (k = all is the paper's form, top-k with alpha renormalised a CHOICE) and section 3
    (selection weights w). Differentiable in `tau`, `weights` and the keys.

    Args:
        query_keys: `[rows, dim]` unit norm.
        memory_keys: `[n, dim]` unit norm.
        tau: temperature, > 0.
        top_k: entries a row reads at most; `None`: all.
        weights: `[n]` relaxed selection weights, >= 0; an entry of weight 0 is read only if nothing else is left.
        exclude: `[rows, n]` True where a row must not read an entry (an example's own entry: leave-one-out).
        thresholds: `[n]` least similarity for each entry's task; a row none of whose entries reaches its own threshold
            reads nothing (abstention, CHOICE). To ask only the best entry would refuse questions of one task because
            the entries of another, stricter one lie nearer.
        space: of `memory_keys` (`KeySpace.of`), in which keys are compared; None: as they are.
    """
    similarity = (space or KeySpace.of(memory_keys, "raw")).similarities(query_keys, memory_keys)
    logits = similarity / tau
    ranking = logits.detach()
    if weights is not None:
        ranking = ranking + weights.detach().to(ranking).clamp_min(SMALLEST_WEIGHT).log()
    if exclude is not None:
        ranking = ranking.masked_fill(exclude, -math.inf)
    count = memory_keys.shape[0] if top_k is None else min(top_k, memory_keys.shape[0])
    best, indices = ranking.topk(count, dim=-1)
    best, indices = best.flip(-1), indices.flip(-1)
    valid = best > -math.inf
    if thresholds is not None and count:
        near = (similarity >= thresholds.to(similarity)).gather(1, indices) & valid
        valid = valid & near.any(-1, keepdim=True)
    chosen = logits.gather(1, indices).masked_fill(~valid, -math.inf)
    peak = chosen.detach().amax(-1, keepdim=True) if count else chosen
    peak = torch.where(peak.isfinite(), peak, torch.zeros_like(peak))
    mass = torch.exp(chosen - peak).masked_fill(~valid, 0.0)
    if weights is not None:
        mass = mass * weights.to(mass)[indices].clamp_min(SMALLEST_WEIGHT)
    alpha = mass / mass.sum(-1, keepdim=True).clamp_min(torch.finfo(mass.dtype).tiny)
    return Retrieved(indices, alpha, similarity.gather(1, indices), valid)
