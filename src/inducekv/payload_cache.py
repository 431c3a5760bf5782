"""Dequantised payloads of the entries that were retrieved last, under a limit of bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

from inducekv.bytes import parse_bytes
from inducekv.layer_lengths import Loaded

PAYLOAD_CACHE = 64 * 2**20
"""Bytes of dequantised payloads that a memory keeps ready unless told otherwise."""


class PayloadCache:
    """Least recently used payloads leave first. Several threads may read at once.

    Attributes:
        nbytes: of what is kept; never above `limit`.
    """

    def __init__(self, limit: int | str = PAYLOAD_CACHE) -> None:
        self._limit = parse_bytes(limit)
        self._kept: OrderedDict[tuple[int, int], tuple[object, Loaded]] = OrderedDict()
        self._lock = threading.Lock()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __reduce__(self) -> Any:
        return PayloadCache, (self._limit,)  # a copy starts empty

    @property
    def limit(self) -> int:
        """Bytes that are kept at most; may be set, to an int or a text such as `"64MiB"`. 0 keeps nothing."""
        return self._limit

    @limit.setter
    def limit(self, limit: int | str) -> None:
        with self._lock:
            self._limit = parse_bytes(limit)
            self._shrink(self._limit)

    def clear(self) -> None:
        """Keep nothing of what was kept."""
        with self._lock:
            self._shrink(0)

    def get(self, place: tuple[object, int], load: Callable[[], Loaded]) -> Loaded:
        """One entry's payload, not to be written to.

        Args:
            place: what tells the entry from others (`Entries.place`).
            load: reads and dequantises it, if it is not kept.
        """
        owner, row = place
        name = (id(owner), row)
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name][1]
        loaded = load()
        size = _nbytes(loaded)
        with self._lock:
            if size <= self._limit and name not in self._kept:
                self._shrink(self._limit - size)
                self._kept[name] = (owner, loaded)  # the owner too, for another could get its address
                self.nbytes += size
        return loaded

    def _shrink(self, size: int) -> None:
        while self.nbytes > size:
            self.nbytes -= _nbytes(self._kept.popitem(last=False)[1][1])


def _nbytes(loaded: Loaded) -> int:
    return sum(x.nbytes for x in loaded if x is not None)
