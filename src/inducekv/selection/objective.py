"""What a set of entries is worth: answers' likelihood now, answers' likelihood on earlier tasks, and coverage."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from inducekv.selection.coverage import Coverage

Split = Literal["calibration", "calibration_anchors", "current", "anchors"]
"""Disjoint sets of questions: the current task's for the inner and the outer level, and earlier tasks' for both."""


@runtime_checkable
class Scorer(Protocol):
    """Scores questions of a split under weighted entries; the learner makes one from the backbone, tests from formulas.

    A question never reads the entry made from it (leave-one-out). phi is one vector: phi_tau, then phi_lambda a layer.
    """

    def size(self, split: Split) -> int:
        """How many questions the split has; may be 0."""
        ...

    def batches(self, split: Split) -> int:
        """How many batches the split is cut into, each a random part of it."""
        ...

    def nll(
        self,
        split: Split,
        weights: Float[Tensor, " entries"],
        phi: Float[Tensor, " parameters"],
        batch: int | None = None,
    ) -> Float[Tensor, " questions"]:
        """Mean negative log-likelihood (nats a token) of each answer in one batch, or in all of them.

        Differentiable in weights and phi. An entry of weight 0 is not read.
        """
        ...

    def nll_alone(
        self, split: Split, entries: Int[Tensor, "questions columns"], phi: Float[Tensor, " parameters"]
    ) -> Float[Tensor, "questions columns"]:
        """The same with exactly one entry read, each of the row's; an entry of -1 means no entry at all."""
        ...

    def similarities(self, split: Split) -> Float[Tensor, "questions entries"]:
        """Similarity of each question's key to each entry's key; -inf where leave-one-out forbids the entry."""
        ...


@dataclass(frozen=True)
class Terms:
    """The outer objective J(w) and its parts, each a scalar; anchors is 0 where there are none."""

    current: Float[Tensor, ""]
    anchors: Float[Tensor, ""]
    coverage: Float[Tensor, ""]
    total: Float[Tensor, ""]

    def as_numbers(self) -> dict[str, float]:
        return {name: float(getattr(self, name).detach()) for name in ("current", "anchors", "coverage", "total")}


@dataclass(frozen=True)
class Batch:
    """Which batch of each split to use, None for all questions."""

    current: int | None = None
    anchors: int | None = None


@dataclass(frozen=True)
class Prior:
    """weight * |phi - centre|^2, added to the inner loss.

    CHOICE: calibration questions come from the training examples, which have near neighbours among the entries. That
    favours a very low temperature, at which questions that must combine several entries read only one.
    """

    centre: Float[Tensor, " parameters"]
    weight: float

    def __call__(self, phi: Float[Tensor, " parameters"]) -> Float[Tensor, ""]:
        return self.weight * (phi - self.centre).square().sum()


@dataclass(frozen=True)
class Measured:
    """J of one set of entries, kept by question, so that two sets can be compared on the same questions.

    Attributes:
        parts: of each outer split its weight in J and its questions' negative log-likelihoods, float64.
        coverage: gamma Omega.
    """

    parts: tuple[tuple[float, Float[Tensor, " _"]], ...]
    coverage: float

    @property
    def total(self) -> float:
        return self.coverage + sum(scale * float(nll.mean()) for scale, nll in self.parts)

    def gain_over(self, other: "Measured") -> tuple[float, float]:
        """How much lower J is than `other`'s, and the standard error of that over paired questions."""
        variance = 0.0
        for (scale, mine), (_, theirs) in zip(self.parts, other.parts, strict=True):
            if len(mine) > 1:
                variance += scale**2 * float((theirs - mine).var()) / len(mine)
        return other.total - self.total, math.sqrt(variance)


@dataclass(frozen=True)
class Objective:
    """J(w) = L_cur + beta L_anc + gamma Omega(w), and the inner loss G(phi) (InduceKV; specs/inducekv.md, section 3).

    CHOICE: phi is shared by all tasks, so the inner loss has an anchors' part as well (weight beta), on anchors
    disjoint from the outer ones.

    Attributes:
        scorer: gives negative log-likelihoods.
        coverage: Omega.
        beta, gamma: weights of the terms.
        prior: pulls phi towards where it started (CHOICE); None lets it go where the calibration questions draw it.
    """

    scorer: Scorer
    coverage: Coverage
    beta: float
    gamma: float
    prior: "Prior | None" = None

    def outer(
        self, weights: Float[Tensor, " entries"], phi: Float[Tensor, " parameters"], batch: Batch | None = None
    ) -> Terms:
        """J and its terms on the outer splits."""
        batch = batch or Batch()
        current = self._mean("current", weights, phi, batch.current)
        anchors = self._mean("anchors", weights, phi, batch.anchors)
        coverage = self.coverage(weights)
        return Terms(current, anchors, coverage, current + self.beta * anchors + self.gamma * coverage)

    def measured(self, weights: Float[Tensor, " entries"], phi: Float[Tensor, " parameters"]) -> "Measured":
        """J on all outer questions, question by question, without gradients."""
        with torch.no_grad():
            scales: dict[Split, float] = {"current": 1.0, "anchors": self.beta}
            parts = [
                (scale, self.scorer.nll(split, weights, phi).double())
                for split, scale in scales.items()
                if self.scorer.size(split)
            ]
            return Measured(tuple(parts), self.gamma * float(self.coverage(weights)))

    def inner(
        self, weights: Float[Tensor, " entries"], phi: Float[Tensor, " parameters"], batch: Batch | None = None
    ) -> Float[Tensor, ""]:
        """G: the calibration loss that phi is fitted to."""
        batch = batch or Batch()
        current = self._mean("calibration", weights, phi, batch.current)
        loss = current + self.beta * self._mean("calibration_anchors", weights, phi, batch.anchors)
        return loss if self.prior is None else loss / (1 + self.beta) + self.prior(phi)

    def outer_batch(self, generator: torch.Generator) -> Batch:
        """A random batch of each outer split."""
        return Batch(self._draw("current", generator), self._draw("anchors", generator))

    def inner_batch(self, generator: torch.Generator) -> Batch:
        """A random batch of each inner split."""
        return Batch(self._draw("calibration", generator), self._draw("calibration_anchors", generator))

    def _mean(
        self,
        split: Split,
        weights: Float[Tensor, " entries"],
        phi: Float[Tensor, " parameters"],
        batch: int | None,
    ) -> Float[Tensor, ""]:
        if self.scorer.size(split) == 0:
            return weights.new_zeros(())
        return self.scorer.nll(split, weights, phi, batch).mean()

    def _draw(self, split: Split, generator: torch.Generator) -> int | None:
        count = self.scorer.batches(split)
        return None if count <= 1 else int(torch.randint(count, (1,), generator=generator))
