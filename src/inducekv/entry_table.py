"""What is known of every entry without reading it: a few numbers each, in columns."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from jaxtyping import Int32, Int64
from numpy.typing import NDArray

from inducekv.config import PayloadDtype
from inducekv.entry import Entry
from inducekv.layout import Layout

TOKENS, SPAN, ANSWER_LENGTH, TASK = range(4)
"""Columns of `EntryTable.numbers`."""


@dataclass(frozen=True)
class EntryTable:
    """The small numbers of many entries.

    Attributes:
        numbers: `[entries, 4]` int32: tokens, span, answer length, and the task's place in `tasks`.
        text_nbytes: `[entries]` int32, bytes of id, question and answer (`Entry.text`).
        id_hashes: `[entries]` int64, `hash` of each id, to find an id without keeping all of them.
        tasks: names of the tasks that have entries, in the order of their first entry.
    """

    numbers: Int32[np.ndarray, "entries 4"]
    text_nbytes: Int32[np.ndarray, "entries"]
    id_hashes: Int64[np.ndarray, "entries"]
    tasks: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.numbers)

    @classmethod
    def of(cls, entries: Sequence[Entry]) -> "EntryTable":
        """The table of some entries."""
        names = tuple(dict.fromkeys(entry.task for entry in entries))
        place = {name: i for i, name in enumerate(names)}
        numbers = [(entry.tokens, entry.span, entry.answer_length, place[entry.task]) for entry in entries]
        return cls(
            np.array(numbers, dtype=np.int32).reshape(-1, 4),
            np.array([entry.text_nbytes for entry in entries], dtype=np.int32),
            np.array([hash(entry.id) for entry in entries], dtype=np.int64),
            names,
        )

    def take(self, rows: NDArray[np.int64]) -> "EntryTable":
        """Some of the rows, in the order of `rows`."""
        return self._ordered(self.numbers[rows], self.text_nbytes[rows], self.id_hashes[rows], self.tasks)

    def followed_by(self, other: "EntryTable") -> "EntryTable":
        """These rows, then another table's."""
        names = tuple(dict.fromkeys((*self.tasks, *other.tasks)))
        place = np.array([names.index(name) for name in other.tasks], dtype=np.int32)
        added = other.numbers.copy()
        added[:, TASK] = place[added[:, TASK]] if len(added) else 0
        return EntryTable(
            np.concatenate([self.numbers, added]),
            np.concatenate([self.text_nbytes, other.text_nbytes]),
            np.concatenate([self.id_hashes, other.id_hashes]),
            names,
        )

    @classmethod
    def _ordered(
        cls,
        numbers: Int32[np.ndarray, "entries 4"],
        text_nbytes: Int32[np.ndarray, "entries"],
        id_hashes: Int64[np.ndarray, "entries"],
        tasks: tuple[str, ...],
    ) -> "EntryTable":
        present, first = np.unique(numbers[:, TASK], return_index=True)
        order = present[np.argsort(first)]
        place = np.zeros(len(tasks), dtype=np.int32)
        place[order] = np.arange(len(order), dtype=np.int32)
        numbers[:, TASK] = place[numbers[:, TASK]]
        return cls(numbers, text_nbytes, id_hashes, tuple(tasks[i] for i in order))

    # -- sums, computed once

    @cached_property
    def tokens(self) -> int:
        """Payload tokens of all entries."""
        return int(self.numbers[:, TOKENS].sum(dtype=np.int64))

    @cached_property
    def longest(self) -> int:
        """Payload tokens of the longest entry, 0 if there is none."""
        return int(self.numbers[:, TOKENS].max(initial=0))

    @cached_property
    def text(self) -> int:
        """Text bytes of all entries."""
        return int(self.text_nbytes.sum(dtype=np.int64))

    def nbytes(self, layout: Layout, payload_dtype: PayloadDtype | str) -> int:
        """Bytes of a memory with these entries."""
        empty = layout.entry_nbytes(0, payload_dtype, 0)
        return (
            layout.base_nbytes(self.tasks)
            + len(self) * empty
            + layout.entry_nbytes(self.tokens, payload_dtype, self.text)
            - empty
        )
