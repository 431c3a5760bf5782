"""What a selector is given and what it returns; the same for all, so that only the selection differs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Num
from torch import Tensor

from inducekv.config import InduceKVConfig
from inducekv.progress import SILENT, Progress
from inducekv.selection.objective import Objective
from inducekv.selection.rounding import indicator


@dataclass(frozen=True)
class SelectionProblem:
    """Candidates (entries in memory and new ones) that compete for the bytes of a memory.

    Attributes:
        objective: J and the calibration loss over these candidates.
        keys: `[entries, key_dim]` unit-norm retrieval keys.
        costs: `[entries]` bytes each would take.
        total: bytes available for entries.
        phi: `[parameters]` calibration to start from.
        tasks: the task of each entry.
        ids: the id of each entry.
        answers: the answer of each entry.
    """

    objective: Objective
    keys: Float[Tensor, "entries key_dim"]
    costs: Num[Tensor, " entries"]
    total: int | float
    phi: Float[Tensor, " parameters"]
    tasks: Sequence[str]
    ids: Sequence[str]
    answers: Sequence[str]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def everything_fits(self) -> bool:
        return all_fit(self.costs, self.total)


def all_fit(costs: Num[Tensor, " entries"], total: int | float) -> bool:
    """Whether `total` bytes hold entries of all these costs, so that nothing is to be chosen."""
    return float(costs.double().sum()) <= total


@dataclass(frozen=True)
class Selection:
    """What a selector decided.

    Attributes:
        weights: `[entries]` relaxed selection weights; 0 and 1 where the selector is discrete.
        chosen: indices to keep, rising; their costs fit the total.
        phi: `[parameters]` calibration the selector ended with.
        history: a row of numbers a step, for reports.
    """

    weights: Float[Tensor, " entries"]
    chosen: list[int]
    phi: Float[Tensor, " parameters"]
    history: list[dict[str, Any]] = field(default_factory=list)


@runtime_checkable
class Selector(Protocol):
    """Chooses which candidates stay; draws only from `generator`."""

    def __call__(
        self,
        problem: SelectionProblem,
        config: InduceKVConfig,
        generator: torch.Generator,
        progress: Progress = SILENT,
    ) -> Selection: ...


def chosen_only(problem: SelectionProblem, chosen: Sequence[int]) -> Selection:
    """A selection by a method that has no relaxed weights and does not touch phi."""
    return Selection(indicator(chosen, len(problem)), sorted(chosen), problem.phi)
