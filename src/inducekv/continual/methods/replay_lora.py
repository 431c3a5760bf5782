"""Replay: sequential LoRA that also trains on a small buffer of earlier tasks' examples."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from torch import nn

from inducekv.continual.ledger import Ledger
from inducekv.continual.methods.buffer import EXAMPLES, buffer_nbytes, load_buffer
from inducekv.continual.methods.sequential_lora import SequentialLora
from inducekv.continual.methods.storage import State
from inducekv.continual.methods.training import TrainingBatch
from inducekv.continual.stream import Experience
from inducekv.examples import Example
from inducekv.training_state import TrainingState


class ReplayLora(SequentialLora):
    """Trains on the new task and the whole buffer together; the buffer gives every task an equal share.

    The buffer is training state: no part of the budget, counted in the ledger's second column.
    """

    name = "replay_lora"
    title = "Replay + LoRA"
    capacity = EXAMPLES

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.buffer = TrainingState()

    def _examples(self, experience: Experience) -> list[Example]:
        return [*experience.train, *(anchor.example() for anchor in self.buffer.anchors)]

    def _after_task(self, module: nn.Module, batches: Sequence[TrainingBatch], experience: Experience) -> None:
        task = f"task {self.learned + 1}"
        self.buffer = self.buffer.updated(experience.train, task, self.capacity, self._seed)

    @property
    def training_bytes(self) -> int:
        return self.buffer.nbytes

    def ledger(self) -> Ledger:
        return Ledger(super().ledger().deployed, buffer_nbytes(self.buffer))

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "buffer": self.capacity}

    def save(self, directory: Path) -> None:
        directory.mkdir(parents=True, exist_ok=True)
        self.buffer.save(directory)
        super().save(directory)

    def _take_up(self, state: State, directory: Path) -> None:
        self.buffer = load_buffer(directory, state.facts["learned"])
