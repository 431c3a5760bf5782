"""What was learned: entries under a byte budget that holds at every moment."""

import copy
import threading
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Float32, Int
from torch import Tensor

from inducekv import memory_file
from inducekv.bytes import format_bytes, parse_bytes
from inducekv.compression.storage import check_format
from inducekv.config import PayloadDtype
from inducekv.entries import Entries
from inducekv.entry import Entry, check_entry
from inducekv.entry_table import TASK
from inducekv.error_text import shown, shown_name
from inducekv.key_space import KeySpace, KeySpaceName
from inducekv.layout import Layout
from inducekv.payload_cache import PAYLOAD_CACHE, PayloadCache
from inducekv.payloads import Payloads
from inducekv.retrieval import Calibration

if TYPE_CHECKING:
    from inducekv.backbone import Backbone


class BudgetError(ValueError):
    """What was asked for does not fit into the budget. Nothing was changed."""


_CHANGING = threading.RLock()


@dataclass
class _Made:
    """What was made of a memory's entries, for all its snapshots."""

    keys: Tensor | None = None
    payloads: Payloads | None = None
    spaces: dict[str, KeySpace] = field(default_factory=dict)


class KVMemory:
    """Entries of one backbone under a budget of bytes.

    Attributes:
        budget: bytes that the memory's files never exceed (`file_nbytes`).
        layout: shape of the entries.
        payload_dtype: number format of the payloads.
        fingerprint: of the backbone that made the entries (`Backbone.fingerprint`).
        calibration: phi (temperature, and scale of the values for each layer).
        thresholds: least similarity of a question to an entry, by the entry's task; nothing is read if none is reached.
        metadata: short texts by name about the memory, such as how it is to be read; at most 4 KiB.
        payload_cache: dequantised payloads kept ready between questions; set its `limit` to keep more or fewer.

    Raises:
        BudgetError: the budget is too small even for an empty memory.
        ValueError, TypeError: an argument is not allowed.
    """

    def __init__(
        self, budget: int | str, layout: Layout, payload_dtype: PayloadDtype | str, fingerprint: dict[str, Any]
    ) -> None:
        check_format(payload_dtype, layout.head_dim)
        self.budget = parse_bytes(budget)
        self.layout = layout
        self.payload_dtype = payload_dtype
        self.fingerprint = dict(fingerprint)
        self.calibration = Calibration.identity(len(layout.layers))
        self.thresholds: dict[str, float] = {}
        self.metadata: dict[str, str] = {}
        self.payload_cache = PayloadCache(PAYLOAD_CACHE)
        self._generations: dict[Path, memory_file.Generation] = {}
        """By folder, what it held when this memory was last loaded from it or saved to it."""
        self._entries = Entries.of([])
        self._hold(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def __repr__(self) -> str:
        size, budget = format_bytes(self.file_nbytes), format_bytes(self.budget)
        return f"KVMemory({len(self)} entries of {len(self.tasks)} tasks, {size} of {budget})"

    @property
    def entries(self) -> Entries:
        """All entries, in the order in which they were added: an unchanging sequence.

        Of a memory that was loaded lazily, an entry's texts, key and payload are read from the file when they are asked
        for, which raises `MemoryFileError` if the file was truncated or written to meanwhile.
        """
        return self._entries

    @property
    def lazy(self) -> bool:
        """Whether payloads of some entries are left in their file until they are retrieved."""
        return bool(self._entries.stores)

    @property
    def tasks(self) -> tuple[str, ...]:
        """Names of the tasks that have entries, in the order of their first entry."""
        return self._entries.table.tasks

    # -- size

    @property
    def nbytes(self) -> int:
        """Bytes of everything the memory holds, as `bytes_by_kind` splits them; see `file_nbytes` for its files."""
        return self._entries.table.nbytes(self.layout, self.payload_dtype)

    @property
    def file_nbytes(self) -> int:
        """Bytes, at most, of all files that answering needs: what the budget limits.

        `nbytes`, and the rest of `memory.json` and of the tensor file: header, fingerprint, metadata, checksums.
        """
        return self._size(self._entries)

    def base_nbytes(self, tasks: Iterable[str], metadata: dict[str, str] | None = None) -> int:
        """Bytes of the files, at most, without entries, if they were of these tasks.

        Args:
            tasks: names.
            metadata: instead of the memory's.
        """
        return memory_file.framing_nbytes(self, metadata) + self.layout.base_nbytes(tasks)

    def check_size(self) -> None:
        """
        Raises:
            BudgetError: the files would take more than the budget, as `metadata` has grown.
        """
        self._check_budget(self._entries, self.budget)

    def entry_nbytes(self, entry: Entry) -> int:
        """Bytes of one entry (without its task's row in the table of tasks, see `Layout.base_nbytes`)."""
        return self.layout.entry_nbytes(entry.tokens, self.payload_dtype, entry.text_nbytes)

    def bytes_by_kind(self) -> dict[str, int]:
        """`nbytes` split into keys, payload, scales, text, bookkeeping and calibration."""
        table, calibration = self._entries.table, self.layout.base_nbytes(())
        tasks = self.layout.base_nbytes(self.tasks) - calibration
        return {
            "keys": self.layout.key_nbytes * len(self),
            "payload": self.layout.payload_nbytes(table.tokens, self.payload_dtype),
            "scales": self.layout.scales_nbytes(table.tokens, self.payload_dtype),
            "text": table.text,
            "bookkeeping": self.layout.bookkeeping_nbytes * len(self) + tasks,
            "calibration": calibration,
        }

    def _size(self, entries: Entries) -> int:
        return memory_file.framing_nbytes(self) + entries.table.nbytes(self.layout, self.payload_dtype)

    def _check_budget(self, entries: Entries, budget: int) -> None:
        size = self._size(entries)
        if size > budget:
            raise BudgetError(
                f"this would take {size:,} bytes ({format_bytes(size)}), "
                f"the budget is {budget:,} ({format_bytes(budget)}); "
                "raise the budget, store fewer or shorter entries, or use a smaller payload dtype"
            )

    def resize(self, budget: int | str) -> None:
        """Change the budget.

        Raises:
            BudgetError: the memory holds more than that already.
        """
        before, self.budget = self.budget, parse_bytes(budget)
        try:
            self.check_size()
        except BudgetError:
            self.budget = before
            raise

    # -- entries

    def add(self, entry: Entry) -> None:
        """Add one entry; see `add_all`."""
        self.add_all([entry])

    def add_all(self, entries: Sequence[Entry]) -> None:
        """Add entries, all or none.

        Raises:
            BudgetError: they do not fit.
            ValueError: an id is taken, or a shape or dtype is not this memory's.
        """
        new = Entries.of(entries)
        self._check_new(new)
        self._hold(self._entries.followed_by(new))

    def replace_all(self, entries: Sequence[Entry]) -> None:
        """Hold exactly these entries from now on, or (on an error) exactly the old ones.

        Raises:
            BudgetError, ValueError: as `add_all`.
        """
        new = Entries.of(entries)
        self._check_new(new)
        self._hold(new)

    def _check_new(self, entries: Entries) -> None:
        known = {id(entry) for entry in self._entries.held}
        for entry in entries.held:
            if id(entry) not in known:
                check_entry(entry, self.layout, self.payload_dtype)
        for store in entries.stores:  # what lies in a file was checked when it was loaded
            if (store.layout, store.payload_dtype) != (self.layout, self.payload_dtype):
                raise ValueError(
                    f"entries of {store.file.path} are {store.payload_dtype} with {store.layout}; "
                    f"this memory holds {self.payload_dtype} with {self.layout}"
                )

    def _hold(self, entries: Entries) -> None:
        if (repeated := entries.repeated_id()) is not None:
            raise ValueError(f"entry ids must be unique in a memory, {shown(repeated)} comes more than once")
        self._check_budget(entries, self.budget)
        with _CHANGING:
            self._take_over(entries)
            self.thresholds = {task: value for task, value in self.thresholds.items() if task in self.tasks}

    def _take_over(self, entries: Entries) -> None:
        self._entries = entries
        self._made = _Made()
        self.payload_cache.clear()

    def _moved(self, entries: Entries) -> None:
        """The same entries lie elsewhere now."""
        self._entries = entries
        self.payload_cache.clear()

    def snapshot(self) -> "KVMemory":
        """The memory as it is now, whatever others do to this one meanwhile; no payload is copied."""
        with _CHANGING:
            taken = copy.copy(self)
        taken.thresholds, taken.metadata = dict(taken.thresholds), dict(taken.metadata)
        return taken

    def become(self, other: "KVMemory") -> None:
        """Take over everything that a snapshot of this memory has become, at once for all who read it."""
        taken = other.snapshot()
        with _CHANGING:
            self.__dict__.update(taken.__dict__)

    def drop(self, ids: Iterable[str]) -> int:
        """Remove entries by id; returns how many. Their bytes leave the file with the next `save_pretrained`.

        Raises:
            ValueError: an id is not in the memory (nothing is removed).
        """
        gone = set(ids)
        places = self._entries.find(gone)
        if missing := gone - places.keys():
            raise ValueError(f"no entry with id {shown(min(missing))} in this memory")
        self._hold(self._entries.without(list(places.values())))
        return len(gone)

    def forget(self, task: str) -> int:
        """Remove a task with all its entries and its threshold; returns how many entries.

        Raises:
            ValueError: no such task (the message names those present).
        """
        if task not in self.tasks:
            tasks = shown_name(", ".join(map(repr, self.tasks)), 300)
            raise ValueError(f"no task {shown(task)} in this memory; tasks: {tasks or 'none'}")
        places = np.flatnonzero(self._entries.table.numbers[:, TASK] == self.tasks.index(task))
        self._hold(self._entries.without(places))
        return len(places)

    def merge(self, other: "KVMemory") -> int:
        """Add another memory's entries whose ids are not here yet; returns how many.

        Thresholds of tasks that are new here come along; calibration and metadata do only if this memory was empty.

        Raises:
            BudgetError: they do not fit (nothing is added).
            ValueError: the memories differ in layout, payload dtype or backbone.
        """
        for name in ("layout", "payload_dtype", "fingerprint"):
            if getattr(self, name) != getattr(other, name):
                mine, others = (shown(getattr(each, name), 160) for each in (self, other))
                raise ValueError(f"memories to merge must have the same {name}; got {mine} and {others}")
        was_empty = not len(self)
        new = other._entries.unlike(self._entries)
        before = self.metadata
        if was_empty:
            self.metadata = dict(other.metadata)
        try:
            self.add_all(new)
        except ValueError:
            self.metadata = before
            raise
        if was_empty:
            self.calibration = other.calibration
        self.thresholds = {t: v for t, v in other.thresholds.items() if t in self.tasks} | self.thresholds
        return len(new)

    # -- reading

    @property
    def layers(self) -> tuple[int, ...]:
        """The model's layers that payloads are of."""
        return self.layout.layers

    def keys(self) -> Float32[Tensor, "n key_dim"]:
        """Retrieval keys `[n, key_dim]`, float32, unit norm, in the order of `entries`."""
        if self._made.keys is None:
            self._made.keys = self._entries.unit_keys(self.layout)
        return self._made.keys

    def key_space(self, name: KeySpaceName) -> KeySpace:
        """The space in which questions are compared with the entries' retrieval keys."""
        spaces = self._made.spaces
        if name not in spaces:
            spaces[name] = KeySpace.of(self.keys(), name)
        return spaces[name]

    def threshold_of_entries(self) -> Float[Tensor, "n"]:
        """Each entry's task's threshold `[n]`; minus infinity where the task has none."""
        table = self._entries.table
        by_task = torch.tensor([self.thresholds.get(task, -torch.inf) for task in table.tasks])
        return by_task[torch.from_numpy(table.numbers[:, TASK]).long()]

    def payloads(self, indices: Int[Tensor, "chosen"]) -> Payloads:
        """Dequantised payloads (float32) of some entries, by their place in `entries`.

        A memory that is held whole and small enough is dequantised once, into one block. Of any other (and where layers
        hold different numbers of tokens), what was retrieved last stays in `payload_cache`.

        Raises:
            MemoryFileError: a payload in a file cannot be read, or holds numbers that are not finite.
        """
        whole = len(self) * self.layout.payload_nbytes(self._entries.table.longest, "float32")
        if whole > self.payload_cache.limit or self.lazy or self.layout.layer_lengths:
            return self._load(indices.tolist())
        if self._made.payloads is None:
            self._made.payloads = self._load(range(len(self)))
            self.payload_cache.clear()
        return self._made.payloads.payloads(indices)

    def _load(self, places: Iterable[int]) -> Payloads:
        loaded, spans = [], []
        for place in places:
            entry = self._entries[place]
            loaded.append(self.payload_cache.get(self._entries.place(place), lambda e=entry: e.payload.load()))  # type: ignore[misc]
            spans.append(entry.span)
        return Payloads.stack(
            [x.keys for x in loaded], [x.values for x in loaded], spans, [x.layer_mask for x in loaded]
        )

    # -- files

    def save_pretrained(self, directory: str | Path) -> None:
        """Write `memory.json` and one safetensors file. See `memory_file.save`.

        The training state of the folder that the memory was loaded from stays with it, but for tasks that are gone.
        """
        memory_file.save(self, Path(directory))

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        backbone: "Backbone | None" = None,
        *,
        lazy: bool | None = None,
        payload_cache: int | str = PAYLOAD_CACHE,
    ) -> "KVMemory":
        """Read a memory; with a backbone, check that it belongs to it. See `memory_file.load`.

        Args:
            directory: that `save_pretrained` wrote.
            backbone: that is to use the memory.
            lazy: leave payloads and texts in the file and read them when they are retrieved; `None`: if the payloads
                take more than `memory_file.LAZY_ABOVE` (256 MiB) bytes.
            payload_cache: bytes of dequantised payloads to keep ready, such as `"64MiB"`.
        """
        memory = memory_file.load(cls, Path(directory), backbone, lazy)
        memory.payload_cache.limit = payload_cache
        return memory

    @staticmethod
    def lock(directory: str | Path, timeout: float = 0.0) -> AbstractContextManager[None]:
        """Keep other writers out of a memory's directory. See `memory_file.lock`."""
        return memory_file.lock(Path(directory), timeout)
