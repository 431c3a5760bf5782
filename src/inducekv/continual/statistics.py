"""How sure the figures are: standard errors and comparisons that know that questions about one picture go together.

Scores come in blocks, one for each task (and seed): `scores[b]` are the scores of block b's questions, 0 to 1, and
`clusters[b]` names the picture of each. The figure of interest is the mean of the blocks' means, which is Last.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

Blocks = Sequence[Sequence[float] | Float[np.ndarray, "questions"]]
Clusters = Sequence[Sequence[Hashable]]

_DRAWS_AT_ONCE = 256


def clustered_standard_error(scores: Blocks, clusters: Clusters) -> float:
    """Standard error of the mean of the blocks' means, clustered by picture; in percentage points.

    Each question's weighted deviation from its block's mean is summed within its cluster; the variance is the sum of
    the squares of these times G / (G - 1) for G clusters (the usual cluster-robust variance of a mean; with one
    question a picture and one block it is the textbook standard error).

    Raises:
        ValueError: no blocks, an empty one, other clusters than scores, or fewer than two clusters.
    """
    sums, _ = _cluster_sums(scores, clusters)
    if len(sums) < 2:
        raise ValueError("a standard error needs questions about at least two pictures")
    return 100.0 * float(np.sqrt(len(sums) / (len(sums) - 1) * (sums**2).sum()))


@dataclass(frozen=True)
class Comparison:
    """Two methods on the same questions, in percentage points of Last.

    Attributes:
        difference: first minus second.
        low, high: the interval that holds the difference with the stated confidence.
        p_value: two-sided, of no difference.
    """

    difference: float
    low: float
    high: float
    p_value: float


def paired_bootstrap(
    first: Blocks, second: Blocks, clusters: Clusters, *, draws: int = 2000, confidence: float = 0.95, seed: int = 0
) -> Comparison:
    """Resamples pictures (with all their questions, and both methods' scores on them) and compares the two methods.

    Pictures are drawn within strata of those that occur in the same blocks, so that no block runs empty. The interval
    is the percentile interval; the p-value is twice the smaller tail, at least 1 / (draws + 1) each side.

    Args:
        first, second: scores of the same questions in the same order.

    Raises:
        ValueError: the two do not have the same questions, or as in `clustered_standard_error`.
    """
    if [len(block) for block in first] != [len(block) for block in second]:
        raise ValueError("a paired comparison needs both methods' scores on the same questions")
    differences = [np.asarray(a, dtype=float) - np.asarray(b, dtype=float) for a, b in zip(first, second, strict=True)]
    _, table = _cluster_sums(differences, clusters)
    observed = 100.0 * float(np.mean([block.mean() for block in differences]))
    generator = np.random.default_rng(seed)
    drawn = np.concatenate(
        [_resampled(table, generator, min(_DRAWS_AT_ONCE, draws - start)) for start in range(0, draws, _DRAWS_AT_ONCE)]
    )
    tail = min((drawn <= 0).sum(), (drawn >= 0).sum())
    outside = (1 - confidence) / 2
    low, high = np.quantile(drawn, [outside, 1 - outside])
    return Comparison(observed, 100.0 * float(low), 100.0 * float(high), min(1.0, 2.0 * float(tail + 1) / (draws + 1)))


@dataclass(frozen=True)
class _Table:
    """Clusters by blocks: sum of scores and number of questions, and the rows of each stratum."""

    sums: Float[np.ndarray, "clusters blocks"]
    counts: Float[np.ndarray, "clusters blocks"]
    strata: list[np.ndarray]


def _cluster_sums(scores: Blocks, clusters: Clusters) -> tuple[Float[np.ndarray, "clusters"], _Table]:
    """Weighted deviations summed within each cluster, and the table to resample from."""
    if not len(scores) or any(not len(block) for block in scores):
        raise ValueError("expected scores of at least one question for each task, got none")
    if [len(block) for block in scores] != [len(names) for names in clusters]:
        raise ValueError("expected a cluster for each score")
    places = {name: place for place, name in enumerate(dict.fromkeys(name for names in clusters for name in names))}
    sums = np.zeros((len(places), len(scores)))
    counts = np.zeros_like(sums)
    deviations = np.zeros(len(places))
    for block, (values, names) in enumerate(zip(scores, clusters, strict=True)):
        rows = np.array([places[name] for name in names])
        numbers = np.asarray(values, dtype=float)
        np.add.at(sums[:, block], rows, numbers)
        np.add.at(counts[:, block], rows, 1.0)
        np.add.at(deviations, rows, (numbers - numbers.mean()) / (len(numbers) * len(scores)))
    _, stratum = np.unique(counts > 0, axis=0, return_inverse=True)
    stratum = stratum.reshape(-1)
    strata = [np.flatnonzero(stratum == number) for number in range(stratum.max() + 1)]
    return deviations, _Table(sums, counts, strata)


def _resampled(table: _Table, generator: np.random.Generator, draws: int) -> Float[np.ndarray, "draws"]:
    """Means of the blocks' means under `draws` resamplings, as shares."""
    times = np.zeros((draws, len(table.sums)))
    for rows in table.strata:
        times[:, rows] = generator.multinomial(len(rows), np.full(len(rows), 1 / len(rows)), size=draws)
    return (times @ table.sums / (times @ table.counts)).mean(axis=1)
