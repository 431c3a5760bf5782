"""The retrieved examples as a real prompt: what reading them costs and gives without any memory of keys and values."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import ClassVar

from inducekv.continual.ledger import Ledger
from inducekv.continual.methods.base import Method
from inducekv.continual.methods.buffer import buffer_nbytes
from inducekv.continual.stream import Experience
from inducekv.examples import Example
from inducekv.learner import entry_id
from inducekv.lookup import Reading
from inducekv.model import InducedModel
from inducekv.progress import SILENT, Progress
from inducekv.training_state import Anchor, TrainingState


class RetrievedPrompt(Method):
    """Puts the examples behind the entries that InduceKV would read before the question: pictures, questions, answers.

    It shares the memory of an `InducedModel` that another method teaches, reads its keys alone, and keeps the sources
    of its entries. They are counted as they are stored: picture files and texts, which may be more than the budget.
    Prompts are as many times as long as they show examples, so that many times fewer are asked at once.

    Args:
        model: taught by the other method.
        max_new_tokens: longest answer in tokens.
    """

    name = "retrieved_prompt"
    title = "Retrieved prompt"
    reference: ClassVar[bool] = True
    shares: ClassVar[str | None] = "inducekv"

    def __init__(self, model: InducedModel, max_new_tokens: int = 32) -> None:
        self._model = model
        self._max_new_tokens = max_new_tokens
        self.sources = TrainingState()

    def learn(self, experience: Experience, progress: Progress = SILENT) -> None:
        """Keeps the sources of entries that are new in the memory, and drops those of entries that left it."""
        kept = {anchor.id: anchor for anchor in self.sources.anchors}
        examples = {example.identifier: example for example in experience.train}
        anchors = []
        for entry in self._model.memory.entries:
            if entry.id not in kept:
                if entry.id not in examples:  # its id was taken when it came
                    examples |= {entry_id(name, entry.task, {name}): each for name, each in examples.items()}
                kept[entry.id] = Anchor.of(_as(examples[entry.id], entry.id), entry.task)
            anchors.append(kept[entry.id])
        self.sources = TrainingState(anchors)

    def answer(self, examples: Sequence[Example], progress: Progress = SILENT, task: str | None = None) -> list[str]:
        if not examples:
            return []
        model, memory = self._model, self._model.memory
        shown: list[list[Example]] = [[] for _ in examples]
        retrieved = None
        if len(memory):
            retrieved = Reading(memory, model.config).retrieved(model.query_keys(list(examples), progress=progress))
        if retrieved is not None:
            sources = [anchor.example() for anchor in self.sources.anchors]
            for row, places, valid in zip(shown, retrieved.indices.tolist(), retrieved.valid.tolist(), strict=True):
                row += [sources[place] for place, read in zip(places, valid, strict=True) if read]
        size = max(1, self.batch_size // max(1, *map(len, shown)))
        prepared = model.backbone.prepare(examples, False, shown=shown, batch_size=size)
        return model.backbone.generate(prepared, max_new_tokens=self._max_new_tokens, progress=progress)

    @property
    def deployed_bytes(self) -> int:
        """Sources, keys, and the table of tasks with their thresholds."""
        memory = self._model.memory
        keys = sum(entry.key.numel() * entry.key.element_size() for entry in memory.entries)
        return self.sources.nbytes + keys + memory.layout.base_nbytes(memory.tasks) - memory.layout.base_nbytes(())

    def ledger(self) -> Ledger:
        """Σ over entries (key + pictures + texts) and the table of tasks."""
        memory = self._model.memory
        tasks = memory.layout.base_nbytes(memory.tasks) - memory.layout.base_nbytes(())
        return Ledger(memory.layout.key_nbytes * len(memory) + buffer_nbytes(self.sources) + tasks)

    def save(self, directory: Path) -> None:
        """The sources; the keys are its partner's, which saves itself."""
        super().save(directory)
        self.sources.save(directory)

    def load(self, directory: Path) -> None:
        super().load(directory)
        sources = TrainingState.load(directory)
        if [anchor.id for anchor in sources.anchors] != [entry.id for entry in self._model.memory.entries]:
            raise ValueError(
                f"the state in {directory} belongs to another memory than {self.shares}'s; load that first"
            )
        self.sources = sources


def _as(example: Example, name: str) -> Example:
    return Example(example.question, example.answer, example.images, name)
