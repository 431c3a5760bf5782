"""What one command asks of the bench, as plain values that can be handed to another process."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from inducekv.continual.metrics import Evaluate
from inducekv.continual.results import budget_name

USUAL: dict[str, Any] = {"max_new_tokens": 32, "evaluate": "all"}
"""Where neither the command nor the stream says otherwise."""


@dataclass(frozen=True)
class Settings:
    """What all runs of one command share, and what a result must have been made with to count as done.

    Attributes:
        model: name or folder of the backbone, or "embedded".
        limit: examples of each split of a task, at most; None for all.
        max_new_tokens: longest answer; None: what suits the stream.
        ahead: ask each task also just before it is learned (forward transfer), where all cells are asked.
        tasks: only so many of the stream's first tasks; None: all.
        train_samples, test_samples: examples to learn from and to ask a task, at most, balanced over answers.
        evaluate: which cells of the accuracy matrix are asked; None: what suits the stream.
        choices: keep the list of choices in the questions of streams that have one.
        epochs, learning_rate: of LoRA; other trained methods take as many times more as their own recipes do. None:
            what suits the stream, else the methods' own recipes.
        dtype: number format of the model's weights; None: the model's own.
    """

    model: str = "embedded"
    limit: int | None = None
    max_new_tokens: int | None = None
    ahead: bool = True
    tasks: int | None = None
    train_samples: int | None = None
    test_samples: int | None = None
    evaluate: Evaluate | None = None
    choices: bool = False
    epochs: int | None = None
    learning_rate: float | None = None
    dtype: str | None = None

    def on(self, suits: Mapping[str, Any]) -> Settings:
        """The same with what they leave open decided for a stream."""
        chosen = {**USUAL, **suits}
        open_ = {name: value for name, value in chosen.items() if getattr(self, name) is None}
        settled = replace(self, **open_)
        return replace(settled, ahead=settled.ahead and settled.evaluate == "all")

    def differing(self, made: Mapping[str, Any]) -> list[str]:
        """What a result's file says of its settings that is not so here: `["with limit 4, not None"]`.

        Fields that the file is older than have their defaults.
        """
        before = {**asdict(Settings().on({})), **made}
        return [f"with {n} {before.get(n)}, not {v}" for n, v in asdict(self).items() if before.get(n) != v]


@dataclass(frozen=True)
class Pass:
    """Methods that go through one stream together, because some read another's memory; most often one alone."""

    stream: str
    methods: tuple[str, ...]
    budget: int
    seed: int

    def __str__(self) -> str:
        return f"{self.stream}, {' + '.join(self.methods)}, {budget_name(self.budget)}, seed {self.seed}"
