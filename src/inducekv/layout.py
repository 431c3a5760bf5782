"""The shape that all entries of a memory share, and the bytes that each part of them takes."""

import json
from collections.abc import Iterable
from dataclasses import dataclass

from inducekv.compression.storage import BITS, STORAGE_DTYPES, stored_width
from inducekv.config import KeyDtype, PayloadDtype
from inducekv.error_text import shown
from inducekv.stored_keys import KEY_DTYPES, check_key_dtype, key_width

BOOKKEEPING = 16
"""Bytes of an entry's four int32 numbers: tokens, span, answer length, task."""
TASK_BOOKKEEPING = 40
"""Bytes counted for a task beside its name: its abstention threshold, written as JSON."""


@dataclass(frozen=True)
class Layout:
    """Shape of the entries of one memory.

    Attributes:
        layers: the model's layers that payloads are kept for, ascending.
        kv_heads, head_dim: of those layers.
        key_dim: length of a retrieval key.
        key_dtype: number format of the stored keys.
        layer_lengths: each entry notes how many tokens each of its layers holds; otherwise all hold the same number.
    """

    layers: tuple[int, ...]
    kv_heads: int
    head_dim: int
    key_dim: int
    key_dtype: KeyDtype | str = "float16"
    layer_lengths: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.layer_lengths, bool):
            raise TypeError(f"layer_lengths must be True or False, got {shown(self.layer_lengths)}")
        sizes = (len(self.layers), self.kv_heads, self.head_dim, self.key_dim)
        if any(isinstance(x, bool) or not isinstance(x, int) for x in (*sizes, *self.layers)):
            raise TypeError(f"a layout is made of whole numbers, got {self}")
        if not all(1 <= size <= 2**20 for size in sizes) or min(self.layers) < 0:
            raise ValueError(f"a layout needs at least one layer, head and dimension, got {self}")
        if sorted(set(self.layers)) != list(self.layers):
            raise ValueError(f"layers must be ascending and different, got {self.layers}")
        check_key_dtype(self.key_dtype)

    @property
    def key_nbytes(self) -> int:
        """Bytes of a stored retrieval key."""
        return key_width(self.key_dim, self.key_dtype) * KEY_DTYPES[self.key_dtype].itemsize

    def payload_nbytes(self, tokens: int, payload_dtype: PayloadDtype | str) -> int:
        """Bytes of keys and values of `tokens` tokens, without scales."""
        width = stored_width(self.head_dim, payload_dtype) * STORAGE_DTYPES[payload_dtype].itemsize
        return 2 * tokens * len(self.layers) * self.kv_heads * width

    def scales_nbytes(self, tokens: int, payload_dtype: PayloadDtype | str) -> int:
        """Bytes of the float16 scales of integer payloads: one a token, layer and head, for keys and for values."""
        return 2 * tokens * len(self.layers) * self.kv_heads * 2 if payload_dtype in BITS else 0

    @property
    def bookkeeping_nbytes(self) -> int:
        """Bytes of an entry's small numbers: four int32, and one a layer where layers differ in length."""
        return BOOKKEEPING + (4 * len(self.layers) if self.layer_lengths else 0)

    def entry_nbytes(self, tokens: int, payload_dtype: PayloadDtype | str, text_nbytes: int) -> int:
        """Bytes that an entry takes in the memory file: key, payload, scales, bookkeeping, text (`text_nbytes`)."""
        payload = self.payload_nbytes(tokens, payload_dtype) + self.scales_nbytes(tokens, payload_dtype)
        return self.key_nbytes + payload + self.bookkeeping_nbytes + text_nbytes

    def base_nbytes(self, tasks: Iterable[str]) -> int:
        """Bytes beside the entries: the calibration phi (float32) and the table of tasks."""
        return 4 * (2 + len(self.layers)) + sum(len(json_bytes(task)) + TASK_BOOKKEEPING for task in set(tasks))


def json_bytes(value: object) -> bytes:
    """A value as the shortest JSON, UTF-8: how texts lie in the file."""
    return json.dumps(value, ensure_ascii=False, separators=(",", ":")).encode()
