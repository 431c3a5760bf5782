"""The safetensors file of a memory, read piece by piece, and its header."""

import hashlib
import json
import math
import os
import threading
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from inducekv.error_text import message, shown
from inducekv.json_object import parse_json

CHUNK = 4 * 2**20
"""Bytes read at once where a file is gone through from end to end."""
LARGEST_HEADER = 2**16
ALIGNMENT = 8
DTYPES = {
    "F32": torch.float32,
    "I32": torch.int32,
    "BF16": torch.bfloat16,
    "F16": torch.float16,
    "I8": torch.int8,
    "U8": torch.uint8,
}
"""Number formats by their names in the header, in the order in which safetensors puts tensors into a file."""


class MemoryFileError(ValueError):
    """A memory's files are missing, truncated, edited, or not a memory at all."""

    def __init__(self, text: str) -> None:
        super().__init__(message(text))


@dataclass(frozen=True)
class Block:
    """One tensor of a file.

    Attributes:
        dtype: its number format.
        shape: its sizes.
        offset: of its first byte in the file.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    offset: int = 0

    @property
    def row_nbytes(self) -> int:
        """Bytes of one step along the first axis."""
        return self.dtype.itemsize * math.prod(self.shape[1:])

    @property
    def nbytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape)


def header_of(blocks: dict[str, Block]) -> tuple[bytes, list[str]]:
    """The first bytes of a safetensors file with these tensors, and the names in the order of their data.

    Byte for byte what the safetensors library writes: wide numbers first, then by name, without gaps.
    """
    return _header_of(blocks, None)


def header_nbytes(blocks: dict[str, Block], largest: int) -> int:
    """Bytes of the header, at most, of a file of these tensors with other first sizes and no number above `largest`."""
    longest = {name: Block(block.dtype, (largest, *block.shape[1:])) for name, block in blocks.items()}
    return len(_header_of(longest, largest)[0])


def _header_of(blocks: dict[str, Block], offset: int | None) -> tuple[bytes, list[str]]:
    rank = {dtype: place for place, dtype in enumerate(DTYPES.values())}
    said = {dtype: name for name, dtype in DTYPES.items()}
    names = sorted(blocks, key=lambda name: (rank[blocks[name].dtype], name))
    header, end = {}, 0
    for name in names:
        block = blocks[name]
        start, end = end, end + block.nbytes
        offsets = [start, end] if offset is None else [offset, offset]
        header[name] = {"dtype": said[block.dtype], "shape": list(block.shape), "data_offsets": offsets}
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text, names


class TensorFile:
    """A safetensors file that stays open, for reading rows of its tensors.

    Reads go through `preadv` and not through a memory map (CHOICE): should somebody truncate the file, a map kills the
    process on the next touched page (SIGBUS), while a read comes back short and becomes a `MemoryFileError`. What was
    read is also counted to nobody's resident memory afterwards. The open file stays readable when another one takes its
    name or it is unlinked, so a memory may be saved over the file it is read from.

    Attributes:
        path: where it was opened.
        size: bytes.
        blocks: its tensors by name; none before `read_header`.

    Raises:
        MemoryFileError: the file cannot be opened.
    """

    def __init__(self, path: Path) -> None:
        try:
            self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_BINARY", 0))
        except OSError as error:
            raise MemoryFileError(f"{path} cannot be opened: {error.strerror}") from error
        weakref.finalize(self, os.close, self._descriptor)
        self._lock = threading.Lock()
        self.path = path
        self._state = self._stat()
        self.size = self._state[0]
        self.blocks: dict[str, Block] = {}

    def __deepcopy__(self, memo: dict[int, Any]) -> "TensorFile":
        return self

    def _stat(self) -> tuple[int, int]:
        stat = os.fstat(self._descriptor)
        return stat.st_size, stat.st_mtime_ns

    def sha256(self) -> str:
        """SHA-256 of the whole file, in hexadecimal, read in chunks."""
        digest = hashlib.sha256()
        for chunk in self._chunks(0, self.size):
            digest.update(chunk.numpy().data)
        return digest.hexdigest()

    def read_header(self) -> None:
        """Fill `blocks`.

        Raises:
            MemoryFileError: the header is none, or its tensors do not fill the file exactly.
        """
        try:
            length = int.from_bytes(bytes(self._bytes(0, 8).numpy()), "little") if self.size >= 8 else self.size
            if not 2 <= length <= min(LARGEST_HEADER, self.size - 8):
                raise ValueError(f"its header would be {length:,} bytes long")
            header = parse_json(bytes(self._bytes(8, length).numpy()))
            blocks, end = {}, 0
            for name, said in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
                shape = tuple(said["shape"])
                if any(type(size) is not int or not 0 <= size < 2**48 for size in shape):
                    raise ValueError(f"{shown(name)} has shape {shown(said['shape'])}")
                block = Block(DTYPES[said["dtype"]], shape, 8 + length + end)
                if said["data_offsets"] != [end, end + block.nbytes]:
                    at = shown(said["data_offsets"])
                    raise ValueError(f"{shown(name)} lies at {at}, not at {[end, end + block.nbytes]}")
                blocks[name], end = block, end + block.nbytes
            if 8 + length + end != self.size:
                raise ValueError(f"its tensors end at byte {8 + length + end:,} of {self.size:,}")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise MemoryFileError(f"{self.path} is not a safetensors file: {error}") from error
        self.blocks = blocks

    def read(self, name: str, start: int = 0, stop: int | None = None) -> Tensor:
        """Rows `start` to `stop` (along the first axis; default: all) of one tensor: `[stop - start, ...]`.

        Raises:
            MemoryFileError: the file was truncated or written to after it was opened.
        """
        block = self.blocks[name]
        stop = block.shape[0] if stop is None else stop
        data = self._bytes(block.offset + start * block.row_nbytes, (stop - start) * block.row_nbytes)
        return data.view(block.dtype).reshape(stop - start, *block.shape[1:])

    def chunks(self, name: str, start: int, stop: int) -> Iterator[Tensor]:
        """Rows `start` to `stop` of one tensor as bytes `[n]` uint8, at most `CHUNK` at once. Raises as `read`."""
        block = self.blocks[name]
        yield from self._chunks(block.offset + start * block.row_nbytes, (stop - start) * block.row_nbytes)

    def _chunks(self, offset: int, length: int) -> Iterator[Tensor]:
        for start in range(0, length, CHUNK):
            yield self._bytes(offset + start, min(CHUNK, length - start))

    def _bytes(self, offset: int, length: int) -> Tensor:
        data = torch.empty(length, dtype=torch.uint8)
        view, done = data.numpy().data, 0
        while done < length:
            count = self._read_into(view[done:], offset + done)
            if not count:
                break
            done += count
        if done < length or self._stat() != self._state:
            raise MemoryFileError(f"{self.path} was truncated or written to after it was opened; load the memory again")
        return data

    def _read_into(self, view: memoryview, offset: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, [view], offset)
        with self._lock:  # Windows: two calls, and other threads may read too
            os.lseek(self._descriptor, offset, os.SEEK_SET)
            data = os.read(self._descriptor, min(len(view), CHUNK))
        view[: len(data)] = data
        return len(data)
