"""A memory's entries in their order, each held in memory or left in its file."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import overload

import numpy as np
import torch
from jaxtyping import Float32
from numpy.typing import NDArray
from torch import Tensor

from inducekv.entry import Entry
from inducekv.entry_table import EntryTable
from inducekv.layout import Layout
from inducekv.stored_entries import StoredEntries, StoredEntry
from inducekv.stored_keys import decode_keys

ROWS = 4096
"""Keys that are converted at once."""


@dataclass(frozen=True)
class Run:
    """Neighbours that come from one place: entries that are held, or successive rows of one file.

    Attributes:
        held: the entries, or None.
        store: the file's entries, or None.
        start, stop: rows of the file.
    """

    held: Sequence[Entry] | None
    store: StoredEntries | None = None
    start: int = 0
    stop: int = 0


class Entries(Sequence[Entry]):
    """An unchanging sequence of entries. Those that lie in a file are made when asked for.

    For each entry it keeps a pointer, a row number and a row of `table`, so that 100,000 entries in a file take a few
    MB and no object each.

    Attributes:
        table: what is known of the entries without reading them.
    """

    def __init__(self, origins: NDArray[np.object_], rows: NDArray[np.int64], table: EntryTable) -> None:
        self._origins = origins  # the entry itself where its row is -1, else the file's entries
        self._rows = rows
        self.table = table

    @classmethod
    def of(cls, entries: Iterable[Entry]) -> "Entries":
        """A sequence of given entries; those that lie in a file stay there."""
        if isinstance(entries, Entries):
            return entries
        given = list(entries)
        origins, rows = np.empty(len(given), dtype=object), np.full(len(given), -1, dtype=np.int64)
        for i, entry in enumerate(given):
            origins[i], rows[i] = entry.place if isinstance(entry, StoredEntry) else (entry, -1)
        return cls(origins, rows, EntryTable.of(given))

    @classmethod
    def read(cls, store: StoredEntries) -> "Entries":
        """All entries of a file, taken out of it. Raises `MemoryFileError` as `StoredEntries.payload`."""
        origins = np.empty(len(store.table), dtype=object)
        for i, entry in enumerate(store.read_all()):
            origins[i] = entry
        return cls(origins, np.full(len(origins), -1, dtype=np.int64), store.table)

    @classmethod
    def stored(cls, store: StoredEntries) -> "Entries":
        """All entries of a file."""
        origins = np.empty(len(store.table), dtype=object)
        origins.fill(store)
        return cls(origins, np.arange(len(origins), dtype=np.int64), store.table)

    def __len__(self) -> int:
        return len(self._rows)

    @overload
    def __getitem__(self, index: int) -> Entry: ...

    @overload
    def __getitem__(self, index: slice) -> "Entries": ...

    def __getitem__(self, index: int | slice) -> "Entry | Entries":
        if isinstance(index, slice):
            return self.take(np.arange(len(self), dtype=np.int64)[index])
        origin, row = self._origins[index], int(self._rows[index])
        return origin if row < 0 else origin.entry(row)

    def __iter__(self) -> Iterator[Entry]:
        for origin, row in zip(self._origins, self._rows, strict=True):
            yield origin if row < 0 else origin.entry(int(row))

    def __repr__(self) -> str:
        return f"<{len(self)} entries, {int((self._rows >= 0).sum())} of them in files>"

    def take(self, places: NDArray[np.int64]) -> "Entries":
        """Some of the entries, in the order of `places`."""
        return Entries(self._origins[places], self._rows[places], self.table.take(places))

    def followed_by(self, others: "Entries") -> "Entries":
        """These entries, then others."""
        return Entries(
            np.concatenate([self._origins, others._origins]),
            np.concatenate([self._rows, others._rows]),
            self.table.followed_by(others.table),
        )

    # -- where they are

    @cached_property
    def _addresses(self) -> NDArray[np.int64]:
        return np.fromiter(map(id, self._origins), dtype=np.int64, count=len(self))

    @property
    def held(self) -> list[Entry]:
        """Those that are in memory."""
        return list(self._origins[self._rows < 0])

    @property
    def stores(self) -> list[StoredEntries]:
        """The files that the others lie in."""
        stored = np.flatnonzero(self._rows >= 0)
        _, first = np.unique(self._addresses[stored], return_index=True)
        return list(self._origins[stored[first]])

    def place(self, index: int) -> tuple[Entry | StoredEntries, int]:
        """What tells an entry from all others and keeps it alive: itself and -1, or its file's entries and its row."""
        return self._origins[index], int(self._rows[index])

    def runs(self) -> Iterator[Run]:
        """All entries in their order, neighbours together."""
        if not len(self):
            return
        stored = self._rows >= 0
        same = (np.diff(self._addresses) == 0) & (np.diff(self._rows) == 1)
        same = np.where(stored[1:], same, ~stored[:-1])
        cuts = [0, *(np.flatnonzero(~same) + 1).tolist(), len(self)]
        for start, stop in pairwise(cuts):
            if stored[start]:
                row = int(self._rows[start])
                yield Run(None, self._origins[start], row, row + stop - start)
            else:
                yield Run(self._origins[start:stop].tolist())

    # -- ids

    def find(self, ids: Iterable[str]) -> dict[str, int]:
        """Places of those ids that are here."""
        wanted = set(ids)
        maybe = np.flatnonzero(np.isin(self.table.id_hashes, np.array([hash(x) for x in wanted], dtype=np.int64)))
        found = ((self[int(place)].id, int(place)) for place in maybe)
        return {name: place for name, place in found if name in wanted}

    def unlike(self, others: "Entries") -> "Entries":
        """These entries without those whose id is among others' ids."""
        maybe = np.flatnonzero(np.isin(self.table.id_hashes, others.table.id_hashes))
        places = {self[int(place)].id: int(place) for place in maybe}
        gone = [places[name] for name in others.find(places)]
        return self.without(gone)

    def without(self, places: Sequence[int] | NDArray[np.int64]) -> "Entries":
        """These entries without some, by place."""
        kept = np.ones(len(self), dtype=bool)
        kept[np.asarray(places, dtype=np.int64)] = False
        return self.take(np.flatnonzero(kept))

    def repeated_id(self) -> str | None:
        """An id that more than one entry has, or None."""
        hashes, counts = np.unique(self.table.id_hashes, return_counts=True)
        seen = set()
        for place in np.flatnonzero(np.isin(self.table.id_hashes, hashes[counts > 1])):
            name = self[int(place)].id
            if name in seen:
                return name
            seen.add(name)
        return None

    # -- retrieval keys

    def unit_keys(self, layout: Layout) -> Float32[Tensor, "n key_dim"]:
        """Retrieval keys `[n, key_dim]`, float32, unit norm; a few thousand at once, so that no other copy is made."""
        keys, place = torch.empty(len(self), layout.key_dim), 0
        for run in self.runs():
            count = run.stop - run.start if run.held is None else len(run.held)
            for start in range(0, count, ROWS):
                stop = min(start + ROWS, count)
                if run.held is None:
                    assert run.store is not None
                    part = run.store.keys(run.start + start, run.start + stop)
                else:
                    part = torch.stack([entry.key for entry in run.held[start:stop]])
                keys[place : place + stop - start] = decode_keys(part, layout.key_dtype, layout.key_dim)
                place += stop - start
        return keys

    # -- bytes, to be written

    def parts(self, name: str) -> Iterator[memoryview | bytes]:
        """What one tensor of a memory file (`keys`, `payload_keys`, ..., `text`) has of these entries, in pieces."""
        for run in self.runs():
            if run.store is not None:
                for chunk in run.store.chunks(name, run.start, run.stop):
                    yield chunk.numpy().data
                continue
            for entry in run.held or ():
                if name == "text":
                    yield entry.text
                else:
                    yield raw(entry.key if name == "keys" else getattr(entry.payload, PAYLOAD_FIELDS[name]))


PAYLOAD_FIELDS = {
    "payload_keys": "keys",
    "payload_values": "values",
    "key_scales": "key_scales",
    "value_scales": "value_scales",
    "layer_lengths": "layer_lengths",
}
"""Attributes of a `Payload` by the tensors of a file that hold them."""


def raw(tensor: Tensor) -> memoryview:
    """A tensor's bytes."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data
