"""Dequantised payloads of the entries that were retrieved last, under a limit of bytes."""

from typing import Any

from inducekv.byte_cache import ByteCache
from inducekv.layer_lengths import Loaded

PAYLOAD_CACHE = 64 * 2**20
"""Bytes of dequantised payloads that a memory keeps ready unless told otherwise."""


class PayloadCache(ByteCache[Loaded]):
    """By an entry's place (`Entries.place`)."""

    def __init__(self, limit: int | str = PAYLOAD_CACHE) -> None:
        super().__init__(limit, _nbytes)

    def __reduce__(self) -> Any:
        return PayloadCache, (self._limit,)


def _nbytes(loaded: Loaded) -> int:
    return sum(x.nbytes for x in loaded if x is not None)
