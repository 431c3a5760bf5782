"""Results as tables of pandas: one row a run, the leaderboard, and comparisons with confidence intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd

from inducekv.continual.results import Result, group
from inducekv.continual.statistics import clustered_standard_error, paired_bootstrap

OURS = "inducekv"
ZERO_SHOT = "zero_shot"
FIGURES = (
    "last",
    "avg",
    "mft",
    "forgetting",
    "bwt",
    "bwt_over_t",
    "fwt",
    "last_weighted",
    "avg_weighted",
    "mft_weighted",
    "last_faithful",
)


def runs(results: Sequence[Result]) -> pd.DataFrame:
    """One row for each result: which run, every figure, bytes, seconds, and the clustered standard error of Last."""
    zero_shots = {(r.stream, r.budget, r.seed): r for r in results if r.method == ZERO_SHOT}
    any_budget = {(r.stream, r.seed): r for r in results if r.method == ZERO_SHOT}
    return pd.DataFrame(
        [_row(r, zero_shots.get((r.stream, r.budget, r.seed)) or any_budget.get((r.stream, r.seed))) for r in results]
    )


def _row(result: Result, zero_shot: Result | None) -> dict[str, Any]:
    figures = {name: np.nan if value is None else value for name, value in result.figures(zero_shot).items()}
    pictures = len({cluster for block in result.clusters for cluster in block})
    return {
        "stream": result.stream,
        "budget": result.budget,
        "method": result.method,
        "title": result.title,
        "reference": result.reference,
        "seed": result.seed,
        **figures,
        "error_of_questions": clustered_standard_error(result.scores, result.clusters) if pictures > 1 else np.nan,
        "deployed_bytes": max(result.deployed_bytes),
        "training_bytes": max(result.training_bytes),
        "learn_seconds": sum(result.learn_seconds),
        "answer_seconds": sum(result.answer_seconds),
        "peak_rss": result.peak_memory.get("rss", 0),
    }


def leaderboard(results: Sequence[Result]) -> pd.DataFrame:
    """One row for each (stream, budget, method): means over seeds; methods by Last, then ablations, then references.

    Columns beside those of `runs`: `seeds`; `error_of_seeds`, the standard error of Last over seeds (NaN for one);
    `error_of_questions` is that of the mean over seeds, whose questions are independent.
    """
    each = runs(results)
    grouped = each.groupby(["stream", "budget", "method"], sort=False)
    table = grouped[[*FIGURES, "learn_seconds", "answer_seconds"]].mean()
    table[["deployed_bytes", "training_bytes", "peak_rss"]] = grouped[
        ["deployed_bytes", "training_bytes", "peak_rss"]
    ].max()
    table[["title", "reference"]] = grouped[["title", "reference"]].first()
    table["part"] = [part_of(name[-1], reference) for name, reference in table["reference"].items()]
    table["seeds"] = grouped["seed"].nunique()
    table["error_of_seeds"] = grouped["last"].sem()
    table["error_of_questions"] = grouped["error_of_questions"].agg(_error_of_mean)
    return (
        table.reset_index()
        .sort_values(["stream", "budget", "part", "last"], ascending=[True, True, True, False], kind="stable")
        .reset_index(drop=True)
    )


def part_of(method: str, reference: bool) -> int:
    """Where a method stands: 0 with the contenders, 1 with the ablations, 2 with the reference rows."""
    return 2 if reference else int("/" in method)


def _error_of_mean(errors: pd.Series) -> float:
    return float(np.sqrt((errors**2).sum()) / len(errors))


def comparisons(results: Sequence[Result], draws: int = 2000) -> pd.DataFrame:
    """InduceKV's Last (where it was not run, the best contender's) minus each other method's, on the same questions.

    One row for each (stream, budget, other method): `ours`, `title`, `difference`, `low`, `high`, `p_value`, `seeds`.
    The bootstrap resamples pictures within the seeds that both were run with.
    """
    rows = []
    for (stream, budget), together in group(results, "stream", "budget").items():
        by_method = {key[0]: {r.seed: r for r in found} for key, found in group(together, "method").items()}
        ours = _ours(together)
        if ours is None:
            continue
        for other, theirs in by_method.items():
            seeds = [s for s in by_method[ours] if s in theirs and theirs[s].questions == by_method[ours][s].questions]
            if other == ours or not seeds:
                continue
            compared = paired_bootstrap(
                [block for s in seeds for block in by_method[ours][s].scores],
                [block for s in seeds for block in theirs[s].scores],
                [[(s, c) for c in block] for s in seeds for block in theirs[s].clusters],
                draws=draws,
            )
            rows.append(
                {
                    "stream": stream,
                    "budget": budget,
                    "ours": ours,
                    "method": other,
                    "title": next(iter(theirs.values())).title,
                    "difference": compared.difference,
                    "low": compared.low,
                    "high": compared.high,
                    "p_value": compared.p_value,
                    "seeds": len(seeds),
                }
            )
    columns = ["stream", "budget", "ours", "method", "title", "difference", "low", "high", "p_value", "seeds"]
    return pd.DataFrame(rows, columns=columns)


def _ours(results: Sequence[Result]) -> str | None:
    contenders = [result for result in results if not result.reference]
    if any(result.method == OURS for result in contenders):
        return OURS
    means = {
        key[0]: np.mean([r.matrix[-1].mean() for r in found]) for key, found in group(contenders, "method").items()
    }
    return max(means, key=lambda name: means[name]) if means else None


def main_budget(results: Sequence[Result]) -> int:
    """The budget that most methods were run under (the smallest of several): the one that pages show in full."""
    methods = {key[0]: len({r.method for r in found}) for key, found in group(results, "budget").items()}
    return min(methods, key=lambda budget: (-methods[budget], budget))
