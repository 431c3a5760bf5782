"""What was made or read last, kept ready under a limit of bytes."""

import threading
from collections import OrderedDict
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from inducekv.bytes import parse_bytes

T = TypeVar("T")


class ByteCache(Generic[T]):
    """Values by what they are made of; those least recently used leave first. Several threads may read at once.

    Args:
        limit: bytes that are kept at most, an int or a text such as `"64MiB"`; 0 keeps nothing.
        nbytes_of: the size of a value.

    Attributes:
        nbytes: of what is kept; never above `limit`.
    """

    def __init__(self, limit: int | str, nbytes_of: Callable[[T], int]) -> None:
        self._limit = parse_bytes(limit)
        self._nbytes_of = nbytes_of
        self._kept: OrderedDict[tuple[int, int], tuple[object, T]] = OrderedDict()
        self._lock = threading.Lock()
        self.nbytes = 0

    def __len__(self) -> int:
        return len(self._kept)

    def __reduce__(self) -> Any:
        return type(self), (self._limit, self._nbytes_of)  # a copy starts empty

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

    def get(self, place: tuple[object, int], make: Callable[[], T]) -> T:
        """The value of a place, not to be written to.

        Args:
            place: an object, told from others by its identity, and a number: what the value is made of.
            make: makes it, if it is not kept.
        """
        owner, number = place
        name = (id(owner), number)
        with self._lock:
            if name in self._kept:
                self._kept.move_to_end(name)
                return self._kept[name][1]
        made = make()
        size = self._nbytes_of(made)
        with self._lock:
            if size <= self._limit and name not in self._kept:
                self._shrink(self._limit - size)
                self._kept[name] = (owner, made)  # the owner too, for another could get its address
                self.nbytes += size
        return made

    def _shrink(self, size: int) -> None:
        while self.nbytes > size:
            self.nbytes -= self._nbytes_of(self._kept.popitem(last=False)[1][1])
