"""`memory.json`: what a memory is, and the names of the files that hold it. Renaming it into place commits them all."""

import hashlib
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inducekv.error_text import shown
from inducekv.json_object import parse_json
from inducekv.tensor_file import MemoryFileError

FORMAT, VERSION = "inducekv-memory", 4
READ = (1, 2, 3, 4)
"""Versions that are read. 1 and 2 wrote 2-bit payloads in other levels, and 1 wrote all retrieval keys in float16;
before 4 an index did not name the training state, and the budget did not count `memory.json` and the header."""
NAMES_ALL = 4
"""The version that names the training state, and whose budget counts all that answering needs."""
CODES = 3
"""The version of today's 2-bit payloads."""
INDEX = "memory.json"
TENSORS = re.compile(r"memory-[0-9a-f]{32}\.safetensors")
STATE = re.compile(r"training_state-[0-9a-f]{32}\.safetensors")
EARLIER_STATE = "training_state.safetensors"
"""The training state's name before version 4, and where it is kept without a memory."""
LARGEST_INDEX = 64 * 2**20
LARGEST_METADATA = 4 * 2**10
LARGEST_GENERATION = 2**53


@dataclass(frozen=True)
class NamedFile:
    """A file beside an index.

    Attributes:
        path: where it lies.
        sha256: of its bytes, in hexadecimal; None where an index of an earlier version does not say.
    """

    path: Path
    sha256: str | None


@dataclass(frozen=True)
class Generation:
    """What a folder held when it was last looked at, to notice that someone else has written to it since.

    Attributes:
        number: counts the changes of a folder's memory; 0: of an earlier version.
        digest: of the index.
        tasks: of the memory.
        training_state: its file; None: there is none.
    """

    number: int
    digest: str
    tasks: frozenset[str]
    training_state: NamedFile | None


def encode(given: Any) -> bytes:
    """A value as the one JSON text that stands for it."""
    return json.dumps(given, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def index_digest(index: dict[str, Any]) -> str:
    """SHA-256 of an index without its own."""
    return hashlib.sha256(encode({k: v for k, v in index.items() if k != "index_sha256"})).hexdigest()


def index_nbytes(index: dict[str, Any], largest: int) -> int:
    """Bytes of `memory.json`, at most, without its tasks, where no size or count in it is above `largest`."""
    digest = "0" * 64
    name = "-" + "0" * 32 + ".safetensors"
    longest = {
        **index,
        "tasks": [],
        "nbytes": largest,
        "entries": largest,
        "generation": LARGEST_GENERATION,
        "file": "memory" + name,
        "size": largest,
        "sha256": digest,
        "training_state": {"file": "training_state" + name, "sha256": digest},
        "index_sha256": digest,
    }
    return len(encode(longest))


def read_index(directory: Path) -> dict[str, Any]:
    """The checked index of a folder; what it says of tensors is checked with them.

    Raises:
        MemoryFileError: there is none, or it is damaged, edited, not ours, or of a version that is not read.
    """
    path = directory / INDEX
    try:
        if (size := path.stat().st_size) > LARGEST_INDEX:
            raise MemoryFileError(f"{path} is {size:,} bytes, more than the {LARGEST_INDEX:,} allowed")
        data = path.read_bytes()
    except (FileNotFoundError, NotADirectoryError) as error:
        raise MemoryFileError(f"no memory in {directory}: it has no {INDEX}") from error
    except (OSError, ValueError) as error:
        if isinstance(error, MemoryFileError):
            raise
        raise MemoryFileError(f"{path} cannot be read: {getattr(error, 'strerror', None) or error}") from error
    try:
        index = parse_json(data)
    except ValueError as error:
        raise MemoryFileError(f"{path} is truncated or not JSON: {error}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise MemoryFileError(f"{path} is not the index of an inducekv memory")
    version = index.get("version")
    if type(version) is not int or version not in READ:
        raise MemoryFileError(f"{path} has format version {shown(version)}, this library reads {READ[0]} to {READ[-1]}")
    try:
        digest = index_digest(index)
    except ValueError as error:
        raise MemoryFileError(f"{path} holds text that is not Unicode: {error}") from error
    if index.get("index_sha256") != digest:
        raise MemoryFileError(f"{path} was edited or damaged: its checksum does not match")
    if version < CODES and index.get("payload_dtype") == "int2":
        raise MemoryFileError(
            f"{path} holds 2-bit payloads of format version {version}, whose levels are no longer read; learn "
            "the memory again"
        )
    _check_names(path, index)
    return index


def _check_names(path: Path, index: dict[str, Any]) -> None:
    name, size = index.get("file"), index.get("size")
    if not isinstance(name, str) or not TENSORS.fullmatch(name) or type(size) is not int:
        raise MemoryFileError(f"{path} names no valid tensor file: {shown(name)}")
    if index["version"] < NAMES_ALL:
        return
    number, state = index.get("generation"), index.get("training_state", "nothing")
    if type(number) is not int or not 1 <= number < LARGEST_GENERATION:
        raise MemoryFileError(f"{path} has generation {shown(number)}; it must be a whole number from 1")
    if state is None:
        return
    file, digest = (state.get("file"), state.get("sha256")) if isinstance(state, dict) else (None, None)
    if not isinstance(file, str) or not STATE.fullmatch(file) or not isinstance(digest, str):
        raise MemoryFileError(f"{path} names no valid training state: {shown(state)}")


def generation_of(directory: Path, index: dict[str, Any]) -> Generation:
    """What a checked index says of its folder."""
    rows = index.get("tasks")
    rows = rows if isinstance(rows, list) else []
    tasks = frozenset(row[0] for row in rows if isinstance(row, list) and row and isinstance(row[0], str))
    if index["version"] < NAMES_ALL:
        earlier = directory / EARLIER_STATE
        state = NamedFile(earlier, None) if earlier.is_file() else None
    elif (named := index["training_state"]) is not None:
        state = NamedFile(directory / named["file"], named["sha256"])
    else:
        state = None
    return Generation(index.get("generation", 0), index["index_sha256"], tasks, state)


def training_state_of(folder: Path) -> NamedFile | None:
    """The training state of a folder with a memory, or one that is kept without a memory; None: there is none.

    Raises:
        MemoryFileError: as `read_index`, where there is an index.
    """
    if (folder / INDEX).exists():
        return generation_of(folder, read_index(folder)).training_state
    path = folder / EARLIER_STATE
    return NamedFile(path, None) if path.is_file() else None
