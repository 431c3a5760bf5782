"""Individual LoRA: an adapter for each task, chosen by the task's label. An oracle."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar

from inducekv.continual.ledger import Ledger
from inducekv.continual.methods.sequential_lora import SequentialLora
from inducekv.continual.methods.storage import State, check_like, read_state, tensors_nbytes, write_state
from inducekv.continual.methods.trained import Weights
from inducekv.continual.stream import Experience
from inducekv.examples import Example
from inducekv.progress import SILENT, Progress


class IndividualLora(SequentialLora):
    """What LoRA reaches when no task disturbs another: each has an adapter of the whole budget, and its label is told.

    A reference: with T tasks it keeps T times the budget, and says so.
    """

    name = "individual_lora"
    title = "Individual LoRA"
    reference: ClassVar[bool] = True
    sees_task_labels: ClassVar[bool] = True
    settles: ClassVar[bool] = True

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.adapters: dict[str, Weights] = {}

    def _start(self) -> Weights | None:
        return None

    def learn(self, experience: Experience, progress: Progress = SILENT) -> None:
        super().learn(experience, progress)
        self.adapters[experience.task] = self.weights or {}

    def answer(self, examples: Sequence[Example], progress: Progress = SILENT, task: str | None = None) -> list[str]:
        if task not in self.adapters:
            known = ", ".join(map(repr, self.adapters)) or "none"
            raise ValueError(f"{self.name} answers for a task that it has learned, got {task!r}; learned: {known}")
        self.weights = self.adapters[task]
        return super().answer(examples, progress)

    @property
    def deployed_bytes(self) -> int:
        return sum(map(tensors_nbytes, self.adapters.values()))

    def ledger(self) -> Ledger:
        return Ledger(len(self.adapters) * self._adapter_nbytes())

    def save(self, directory: Path) -> None:
        tensors = {f"{i}/{n}": t for i, adapter in enumerate(self.adapters.values()) for n, t in adapter.items()}
        write_state(directory, self.name, State(tensors, facts={"tasks": list(self.adapters)}))

    def load(self, directory: Path) -> None:
        state = read_state(directory, self.name)
        tasks = state.facts.get("tasks")
        if not isinstance(tasks, list) or not all(isinstance(task, str) for task in tasks):
            raise ValueError(f"the state in {directory} is damaged: it has no list of tasks")
        expected = self._expected() if tasks else {}
        check_like(state.deployed, {f"{i}/{n}": t for i in range(len(tasks)) for n, t in expected.items()}, directory)
        self.adapters = {task: {n: state.deployed[f"{i}/{n}"] for n in expected} for i, task in enumerate(tasks)}
        self.learned = len(tasks)
