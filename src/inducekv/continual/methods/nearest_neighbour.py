"""Label copy: what a memory is worth as a plain look-up table."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from inducekv.continual.ledger import Ledger
from inducekv.continual.methods.base import Method
from inducekv.continual.stream import Experience
from inducekv.examples import Example
from inducekv.layout import BOOKKEEPING
from inducekv.model import InducedModel
from inducekv.progress import SILENT, Progress


class NearestNeighbour(Method):
    """Answers with the answer of the nearest entry, by the memory's own keys, over the entries that InduceKV committed.

    It shares the memory of an `InducedModel` that another method teaches: in a stream it comes after that method. What
    InduceKV gains over it is what the backbone adds by reading the entries.
    """

    name = "nearest_neighbour"
    title = "Nearest neighbour"
    reference: ClassVar[bool] = True
    shares: ClassVar[str | None] = "inducekv"

    def __init__(self, model: InducedModel) -> None:
        self._model = model

    def learn(self, experience: Experience, progress: Progress = SILENT) -> None:
        pass

    def answer(self, examples: Sequence[Example], progress: Progress = SILENT, task: str | None = None) -> list[str]:
        memory = self._model.memory
        if not len(memory) or not examples:
            return [""] * len(examples)
        queries = self._model.query_keys(list(examples), progress=progress)
        nearest = memory.key_space(self._model.config.key_space).similarities(queries, memory.keys()).argmax(dim=1)
        entries = memory.entries
        return [entries[index].answer for index in nearest.tolist()]

    @property
    def deployed_bytes(self) -> int:
        """Keys and source texts alone, without payloads."""
        by_kind = self._model.memory.bytes_by_kind()
        return sum(nbytes for kind, nbytes in by_kind.items() if kind not in ("payload", "scales", "calibration"))

    def ledger(self) -> Ledger:
        memory = self._model.memory
        each = memory.layout.key_nbytes + BOOKKEEPING
        tasks = memory.layout.base_nbytes(memory.tasks) - memory.layout.base_nbytes(())
        return Ledger(each * len(memory) + sum(len(entry.text) for entry in memory.entries) + tasks)
