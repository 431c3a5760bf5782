"""Reservoir sampling: a uniform sample of everything ever seen, kept online."""

import hashlib
from collections.abc import Sequence

import torch

from inducekv.config import InduceKVConfig
from inducekv.progress import SILENT, Progress
from inducekv.selection.problem import Selection, SelectionProblem, chosen_only
from inducekv.selection.rounding import round_weights


def reservoir(
    problem: SelectionProblem,
    config: InduceKVConfig,
    generator: torch.Generator,
    progress: Progress = SILENT,
) -> Selection:
    """Keeps the entries with the largest random priority (Vitter 1985, algorithm R in its form with random keys).

    CHOICE: an entry's priority is a hash of the seed and its id, so it is the same at every task without being stored:
    what stays is a uniform sample of all candidates of all tasks so far, up to entries of different size.
    """
    return chosen_only(problem, round_weights(priorities(problem.ids, config.seed), problem.costs, problem.total))


def priorities(ids: Sequence[str], seed: int) -> torch.Tensor:
    """`[entries]` float64 in (0, 1], one a name, uniform over names."""
    digests = (hashlib.sha256(f"{seed}\0{name}".encode()).digest() for name in ids)
    return torch.tensor([(int.from_bytes(digest[:6], "big") + 1) / 2**48 for digest in digests], dtype=torch.float64)
