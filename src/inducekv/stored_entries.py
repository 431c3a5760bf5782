"""Entries that stay in their file: what is asked of one is read when it is asked."""

import json
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Any

import numpy as np
import torch
from jaxtyping import Num
from torch import Tensor

from inducekv.compression.storage import BITS, STORAGE_DTYPES, stored_width
from inducekv.config import PayloadDtype
from inducekv.entry import Entry
from inducekv.entry_table import ANSWER_LENGTH, SPAN, TASK, TOKENS, EntryTable
from inducekv.layout import Layout
from inducekv.stored_keys import KEY_DTYPES, key_width
from inducekv.stored_payload import Payload
from inducekv.tensor_file import Block, MemoryFileError, TensorFile

PARTS = ("payload_keys", "payload_values", "key_scales", "value_scales")
"""Tensors of a file that have a row for each token; the last two only with integer payloads."""

ROWS = 4096
"""Rows that are checked at once."""


def blocks_of(
    layout: Layout, payload_dtype: PayloadDtype | str, entries: int, tokens: int, text: int
) -> dict[str, Block]:
    """Tensors of the file of so many entries with so many payload tokens and bytes of text, all together."""
    rows = (tokens, len(layout.layers), layout.kv_heads)
    payload = Block(STORAGE_DTYPES[payload_dtype], (*rows, stored_width(layout.head_dim, payload_dtype)))
    scales = Block(torch.float16, rows)
    return {
        "keys": Block(KEY_DTYPES[layout.key_dtype], (entries, key_width(layout.key_dim, layout.key_dtype))),
        "payload_keys": payload,
        "payload_values": payload,
        **({"key_scales": scales, "value_scales": scales} if payload_dtype in BITS else {}),
        "numbers": Block(torch.int32, (entries, 4)),
        **({"layer_lengths": Block(torch.int32, (entries, len(layout.layers)))} if layout.layer_lengths else {}),
        "text": Block(torch.uint8, (text,)),
        "calibration": Block(torch.float32, (2 + len(layout.layers),)),
    }


class StoredEntries:
    """All entries of one file, checked but not read.

    Attributes:
        file: where they lie.
        layout, payload_dtype: of the memory they were saved from.
        table: their small numbers, in the file's order.
    """

    def __init__(self, file: TensorFile, layout: Layout, payload_dtype: PayloadDtype | str, table: EntryTable) -> None:
        self.file, self.layout, self.payload_dtype, self.table = file, layout, payload_dtype, table
        self._tokens, self._text = (
            np.concatenate([[0], np.cumsum(sizes, dtype=np.int64)])
            for sizes in (table.numbers[:, TOKENS], table.text_nbytes)
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> "StoredEntries":
        return self

    def entry(self, row: int) -> "StoredEntry":
        """One entry; nothing is read yet."""
        return StoredEntry.at(self, row)

    def keys(self, start: int, stop: int) -> Num[Tensor, "rows stored"]:
        """Retrieval keys of rows `start` to `stop`, as stored. Raises `MemoryFileError` as `TensorFile`."""
        return self.file.read("keys", start, stop)

    def payload(self, row: int) -> Payload:
        """One entry's payload.

        Raises:
            MemoryFileError: it holds numbers that are not finite, or the file changed after it was opened.
        """
        start, stop = int(self._tokens[row]), int(self._tokens[row + 1])
        parts = [self.file.read(name, start, stop) for name in PARTS if name in self.file.blocks]
        if not all(finite(part) for part in parts):
            raise MemoryFileError(f"entry {row} of {self.file.path} holds numbers that are not finite")
        lengths = self.file.read("layer_lengths", row, row + 1)[0] if self.layout.layer_lengths else None
        return self._payload(parts, lengths)

    def _payload(self, parts: Sequence[Tensor], lengths: Tensor | None) -> Payload:
        keys, values, *scales = parts
        key_scales, value_scales = scales if scales else (None, None)
        return Payload(keys, values, key_scales, value_scales, self.payload_dtype, self.layout.head_dim, lengths)

    def read_all(self) -> list[Entry]:
        """All entries, whole. Raises as `payload`."""
        lengths = self.table.numbers[:, TOKENS].tolist()
        parts = []
        for name in (part for part in PARTS if part in self.file.blocks):
            whole = self.file.read(name)
            if not all(finite(some) for some in whole.split(ROWS)):
                raise MemoryFileError(f"{name} of {self.file.path} holds numbers that are not finite")
            parts.append(whole.split(lengths) if lengths else ())
        keys = self.file.read("keys")
        layers = self.file.read("layer_lengths") if self.layout.layer_lengths else [None] * len(keys)
        texts = bytes(self.file.read("text").numpy()).decode().split("\n")[:-1]
        entries = []
        for i, (line, (_, span, answer_length, task)) in enumerate(
            zip(texts, self.table.numbers.tolist(), strict=True)
        ):
            name, question, answer = json.loads(line)
            payload = self._payload([part[i] for part in parts], layers[i])
            entries.append(Entry(name, self.table.tasks[task], keys[i], payload, span, answer_length, question, answer))
        return entries

    def text(self, row: int) -> bytes:
        """One entry's `Entry.text`. Raises `MemoryFileError` as `TensorFile`."""
        return bytes(self.file.read("text", int(self._text[row]), int(self._text[row + 1])).numpy())

    def chunks(self, name: str, start: int, stop: int) -> Iterator[Tensor]:
        """What rows `start` to `stop` have in one tensor of the file: bytes `[n]` uint8, a few MiB at once."""
        first = self._text if name == "text" else self._tokens if name in PARTS else np.arange(len(self.table) + 1)
        yield from self.file.chunks(name, int(first[start]), int(first[stop]))


class StoredEntry(Entry):
    """An entry of a file. Key and payload are read at every access and not kept; texts are kept once read."""

    _store: StoredEntries
    _row: int

    def __new__(cls, *args: Any, **fields: Any) -> Any:
        return Entry(*args, **fields)  # made from fields (dataclasses.replace), it lies in no file

    @classmethod
    def at(cls, store: StoredEntries, row: int) -> "StoredEntry":
        """The entry in one row of a file."""
        entry = object.__new__(cls)
        entry.__dict__.update(_store=store, _row=row)
        return entry

    @property
    def place(self) -> tuple[StoredEntries, int]:
        """The file's entries, and this one's row among them."""
        return self._store, self._row

    def __eq__(self, other: object) -> bool:
        return isinstance(other, StoredEntry) and self._store is other._store and self._row == other._row

    def __hash__(self) -> int:
        return hash((id(self._store), self._row))

    def __repr__(self) -> str:
        return f"StoredEntry({self.id!r} of {self._store.file.path})"

    def __reduce__(self) -> Any:
        fields = (self.id, self.task, self.key, self.payload, self.span, self.answer_length, self.question, self.answer)
        return Entry, fields

    @cached_property
    def _texts(self) -> list[str]:
        return json.loads(self.text)

    @property
    def id(self) -> str:
        return self._texts[0]

    @property
    def question(self) -> str:
        return self._texts[1]

    @property
    def answer(self) -> str:
        return self._texts[2]

    @property
    def task(self) -> str:
        return self._store.table.tasks[self._number(TASK)]

    @property
    def span(self) -> int:
        return self._number(SPAN)

    @property
    def answer_length(self) -> int:
        return self._number(ANSWER_LENGTH)

    @property
    def key(self) -> Num[Tensor, "stored"]:
        return self._store.keys(self._row, self._row + 1)[0]

    @property
    def payload(self) -> Payload:
        return self._store.payload(self._row)

    @property
    def tokens(self) -> int:
        return self._number(TOKENS)

    @property
    def text(self) -> bytes:
        return self._store.text(self._row)

    @property
    def text_nbytes(self) -> int:
        return int(self._store.table.text_nbytes[self._row])

    def _number(self, column: int) -> int:
        return int(self._store.table.numbers[self._row, column])


def finite(tensor: Tensor) -> bool:
    """Whether all numbers are finite; integers are."""
    return not tensor.is_floating_point() or bool(torch.isfinite(tensor).all())
