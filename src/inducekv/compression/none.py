"""No compression: every token of the example stays."""

from dataclasses import dataclass

from inducekv.compression.base import Compression
from inducekv.encoded import Encoded


@dataclass(frozen=True)
class NoCompression(Compression):
    """Keeps the whole example: the reference every other method is compared with."""

    def compress(self, encoded: Encoded) -> Encoded:
        return encoded
