"""InduceKV: one memory under one byte budget for the whole stream; its ablations are changes of configuration."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from inducekv.continual.ledger import Ledger
from inducekv.continual.methods.base import Method
from inducekv.continual.methods.buffer import buffer_nbytes
from inducekv.continual.methods.storage import State, count_of, read_state, write_state
from inducekv.continual.stream import Experience
from inducekv.examples import Example
from inducekv.learner import LearnReport
from inducekv.memory import KVMemory
from inducekv.model import InducedModel
from inducekv.progress import SILENT, Progress
from inducekv.training_state import TrainingState


class InduceKV(Method):
    """Learns each task into the memory of `model` and answers with it.

    Args:
        model: taught by this method.
        max_new_tokens: longest answer in tokens.
        ablation: a name in `catalogue.ABLATIONS` that `model`'s configuration was changed by, or None.
    """

    name = "inducekv"
    title = "InduceKV"
    decided_by_learning: ClassVar[tuple[str, ...]] = ("entries",)

    def __init__(self, model: InducedModel, max_new_tokens: int = 32, ablation: str | None = None) -> None:
        self.model = model
        self._max_new_tokens = max_new_tokens
        if ablation is not None:
            self.name, self.title = f"inducekv/{ablation}", f"InduceKV, {ablation.replace('_', ' ')}"
        self.learned = 0
        self.reports: list[LearnReport] = []

    def learn(self, experience: Experience, progress: Progress = SILENT) -> None:
        task = self._label(experience)
        self.reports.append(self.model.learn(list(experience.train), task=task, progress=progress, ranks=self.ranks))
        self.learned += 1

    def _label(self, experience: Experience) -> str:
        """The task's name where the stream tells it; else its number."""
        try:
            return experience.task
        except ValueError:
            return f"task {self.learned + 1}"

    def answer(self, examples: Sequence[Example], progress: Progress = SILENT, task: str | None = None) -> list[str]:
        answers = self.model.answer_all(
            list(examples),
            progress=progress,
            max_new_tokens=self._max_new_tokens,
            sources=False,
            batch_size=self.batch_size,
        )
        return [answer.text for answer in answers]

    @property
    def deployed_bytes(self) -> int:
        return self.model.memory.nbytes

    @property
    def training_bytes(self) -> int:
        return self.model.training_state.nbytes

    def ledger(self) -> Ledger:
        """Σ over entries (key + payload + scales + bookkeeping + text), phi and the table of tasks; see `Layout`."""
        memory = self.model.memory
        entries = sum(map(memory.entry_nbytes, memory.entries))
        return Ledger(memory.layout.base_nbytes(memory.tasks) + entries, buffer_nbytes(self.model.training_state))

    def describe(self) -> dict[str, Any]:
        return {"entries": len(self.model.memory), **self.model.config.to_dict()}

    def save(self, directory: Path) -> None:
        self.model.save_memory(directory)
        write_state(directory, self.name, State(facts={"learned": self.learned}))

    def load(self, directory: Path) -> None:
        self.learned = count_of(read_state(directory, self.name).facts, "learned", directory)
        memory = KVMemory.from_pretrained(directory, self.model.backbone)
        state = TrainingState.load(directory)
        self.model.memory, self.model.training_state = memory, state
