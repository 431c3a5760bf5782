"""What one command asks of the bench, as plain values that can be handed to another process."""

from __future__ import annotations

from dataclasses import dataclass

from inducekv.continual.results import budget_name


@dataclass(frozen=True)
class Settings:
    """What all runs of one command share, and what a result must have been made with to count as done.

    Attributes:
        model: name or folder of the backbone, or "embedded".
        limit: examples of each split of a task, at most; None for all.
        max_new_tokens: longest answer.
        ahead: ask each task also just before it is learned (forward transfer).
    """

    model: str = "embedded"
    limit: int | None = None
    max_new_tokens: int = 32
    ahead: bool = True


@dataclass(frozen=True)
class Pass:
    """Methods that go through one stream together, because some read another's memory; most often one alone."""

    stream: str
    methods: tuple[str, ...]
    budget: int
    seed: int

    def __str__(self) -> str:
        return f"{self.stream}, {' + '.join(self.methods)}, {budget_name(self.budget)}, seed {self.seed}"
