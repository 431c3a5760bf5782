"""A memory on disk: `memory.json` and one `memory-<digest>.safetensors` that it names.

The rename of `memory.json` is the moment of change: before it the old memory is intact, after it the new one is.
The JSON carries the SHA-256 of the tensors and of itself, so a truncated, edited or mismatched file is refused.
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import torch

from inducekv.atomic import write_atomically, write_parts_atomically
from inducekv.entries import Entries, raw
from inducekv.fingerprint import FingerprintError as FingerprintError
from inducekv.fingerprint import check_fingerprint as check_fingerprint
from inducekv.layer_lengths import fills
from inducekv.layout import Layout
from inducekv.retrieval import Calibration
from inducekv.stored_entries import PARTS, StoredEntries, blocks_of, finite
from inducekv.table_reader import read_table
from inducekv.tensor_file import MemoryFileError as MemoryFileError
from inducekv.tensor_file import TensorFile, header_of

if TYPE_CHECKING:
    from inducekv.backbone import Backbone
    from inducekv.memory import KVMemory

FORMAT, VERSION, NEWEST = "inducekv-memory", 2, 3
"""What is written: version 3 for what version 2 cannot say (`_version`), else 2."""
READ = (1, 2, 3)
"""Versions that are read. 1 and 2 wrote 2-bit payloads in other levels, and 1 wrote all retrieval keys in float16."""
INDEX = "memory.json"
LOCK = ".memory.lock"
NAME = re.compile(r"memory-[0-9a-f]{32}\.safetensors")
LARGEST_INDEX = 64 * 2**20
LARGEST_METADATA = 4 * 2**10
LAZY_ABOVE = 256 * 2**20
"""Payloads of more bytes than this stay in the file until they are retrieved, unless told otherwise. CHOICE: below it
everything is read in about a second, and the memory outlives its file; above it keys and table alone are a fraction."""
ROWS = 4096
"""Keys that are checked at once."""
PATIENCE = 60.0
"""Seconds that `save` waits for another writer."""


class MemoryLockedError(ValueError):
    """Someone else is writing to the memory."""


@contextmanager
def lock(directory: Path, timeout: float = 0.0) -> Iterator[None]:
    """Hold the directory for writing; re-entrant, and the system frees it if the process dies.

    Args:
        directory: made if needed.
        timeout: seconds to wait for another writer; 0 refuses at once, -1 waits for ever.

    Raises:
        MemoryLockedError: another process still held it after `timeout`.
    """
    directory.mkdir(parents=True, exist_ok=True)
    held = filelock.FileLock(directory / LOCK, is_singleton=True)  # re-entrant: `save` takes it too
    try:
        held.acquire(timeout=timeout)
    except filelock.Timeout as error:
        raise MemoryLockedError(
            f"another process is writing to the memory in {directory}; wait for it to finish and try again"
        ) from error
    try:
        yield
    finally:
        held.release()


def save(memory: "KVMemory", directory: Path) -> None:
    """Write a memory so that a crash at any point leaves the old one or the new one, whole.

    Same memory, same bytes. Files of earlier states are removed after the change, so nothing dropped stays on disk.

    Raises:
        MemoryLockedError: another process kept writing for more than `PATIENCE` seconds.
        OSError: the directory cannot be written; an old memory there is untouched.
    """
    table, layout = memory.entries.table, memory.layout
    header, order = header_of(blocks_of(layout, memory.payload_dtype, len(memory), table.tokens, table.text))
    index = {
        "format": FORMAT,
        "version": _version(memory),
        "budget": memory.budget,
        "nbytes": memory.nbytes,
        "entries": len(memory),
        "payload_dtype": memory.payload_dtype,
        "layout": {
            "layers": list(layout.layers),
            "kv_heads": layout.kv_heads,
            "head_dim": layout.head_dim,
            "key_dim": layout.key_dim,
            "key_dtype": layout.key_dtype,
            **({"layer_lengths": True} if layout.layer_lengths else {}),
        },
        "tasks": [[task, memory.thresholds.get(task)] for task in memory.tasks],
        "fingerprint": memory.fingerprint,
        "metadata": _checked_metadata(memory.metadata),
    }
    digest, size = hashlib.sha256(), 0

    def parts() -> Iterator[bytes | memoryview]:
        nonlocal size
        for part in _parts(memory, header, order):
            digest.update(part)
            size += len(part)
            yield part

    with lock(directory, PATIENCE):
        path = write_parts_atomically(directory, parts(), lambda: f"memory-{digest.hexdigest()[:32]}.safetensors")
        index |= {"file": path.name, "size": size, "sha256": digest.hexdigest()}
        write_atomically(directory / INDEX, _encode({**index, "index_sha256": _index_digest(index)}))
        for stale in [*directory.glob("memory-*.safetensors"), *directory.glob(".memory-*.tmp")]:
            if stale.name != path.name:
                stale.unlink(missing_ok=True)
        if any(store.file.path.parent.resolve() == directory.resolve() for store in memory.entries.stores):
            file = TensorFile(path)  # the file read so far lives, without a name, for as long as it is open
            file.read_header()
            memory._moved(Entries.stored(StoredEntries(file, layout, memory.payload_dtype, table)))


def _version(memory: "KVMemory") -> int:
    """3 where layers hold different numbers of tokens, and for 2-bit payloads, whose codes were plain levels before."""
    return NEWEST if memory.layout.layer_lengths or memory.payload_dtype == "int2" else VERSION


def _parts(memory: "KVMemory", header: bytes, order: list[str]) -> Iterator[bytes | memoryview]:
    """The tensor file in pieces."""
    yield header
    for name in order:
        if name == "calibration":
            yield raw(torch.cat([memory.calibration.phi_tau.reshape(1), memory.calibration.phi_lambda]).float())
        elif name == "numbers":
            yield memory.entries.table.numbers.tobytes()
        else:
            yield from memory.entries.parts(name)


def _encode(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def _index_digest(index: dict[str, Any]) -> str:
    return hashlib.sha256(_encode({k: v for k, v in index.items() if k != "index_sha256"})).hexdigest()


def load(kind: type["KVMemory"], directory: Path, backbone: "Backbone | None", lazy: bool | None = None) -> "KVMemory":
    """Read a memory. Nothing in the files is trusted: sizes, names, checksums and shapes are checked before use.

    Lazily or not, the checksum of the whole file, all names and texts, and that keys are finite are checked here, in
    pieces of a few MiB. That payloads are finite is checked when they are read.

    Args:
        kind: the class to make.
        directory: that `save` wrote.
        backbone: that the memory must belong to.
        lazy: leave payloads and texts in the file; `None`: if the payloads take more than `LAZY_ABOVE` bytes (but never
            by itself on Windows, where the open file could not be replaced).

    Raises:
        MemoryFileError: files are missing, truncated, edited, of another format or a newer version.
        FingerprintError: the memory was made for another model than `backbone`.
    """
    index = _read_index(directory)
    file = _open_tensors(directory, index)
    try:
        memory = _build(kind, index, file, lazy)
    except MemoryFileError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, RuntimeError, OverflowError) as error:
        raise MemoryFileError(f"the memory in {directory} is not consistent: {error}") from error
    if backbone is not None:
        check_fingerprint(memory.fingerprint, backbone)
    return memory


def _read_index(directory: Path) -> dict[str, Any]:
    path = directory / INDEX
    if not path.is_file():
        raise MemoryFileError(f"no memory in {directory}: it has no {INDEX}")
    if path.stat().st_size > LARGEST_INDEX:
        raise MemoryFileError(f"{path} is {path.stat().st_size:,} bytes, more than the {LARGEST_INDEX:,} allowed")
    try:
        index = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise MemoryFileError(f"{path} is truncated or not JSON: {error}") from error
    if not isinstance(index, dict) or index.get("format") != FORMAT:
        raise MemoryFileError(f"{path} is not the index of an inducekv memory")
    if index.get("version") not in READ or isinstance(index["version"], bool):
        raise MemoryFileError(
            f"{path} has format version {index.get('version')!r}, this library reads {READ[0]} to {READ[-1]}"
        )
    if index.get("index_sha256") != _index_digest(index):
        raise MemoryFileError(f"{path} was edited or damaged: its checksum does not match")
    if index["version"] < NEWEST and index.get("payload_dtype") == "int2":
        raise MemoryFileError(
            f"{path} holds 2-bit payloads of format version {index['version']}, whose levels are no longer read; learn "
            "the memory again"
        )
    return index


def _open_tensors(directory: Path, index: dict[str, Any]) -> TensorFile:
    name, size = index.get("file"), index.get("size")
    if not isinstance(name, str) or not NAME.fullmatch(name) or not isinstance(size, int):
        raise MemoryFileError(f"{directory / INDEX} names no valid tensor file: {name!r}")
    path = directory / name
    if not path.is_file():
        raise MemoryFileError(f"{path} is missing; {INDEX} refers to it")
    file = TensorFile(path)
    if file.size != size:
        raise MemoryFileError(f"{path} is truncated or edited: {file.size:,} bytes instead of {size:,}")
    if file.sha256() != index.get("sha256"):
        raise MemoryFileError(f"{path} was edited or damaged: its checksum does not match")
    file.read_header()
    return file


def _build(kind: type["KVMemory"], index: dict[str, Any], file: TensorFile, lazy: bool | None) -> "KVMemory":
    layout = Layout(**{**index["layout"], "layers": tuple(index["layout"]["layers"])})
    memory = kind(index["budget"], layout, index["payload_dtype"], index["fingerprint"])
    numbers, phi, count = file.read("numbers"), file.read("calibration"), index["entries"]
    if tuple(numbers.shape) != (count, 4) or numbers.dtype != torch.int32 or bool((numbers < 0).any()):
        raise MemoryFileError(
            f"the table of entries must be int32 [{count}, 4], got {numbers.dtype} {list(numbers.shape)}"
        )
    if tuple(phi.shape) != (1 + len(layout.layers),) or phi.dtype != torch.float32 or bool(phi.isnan().any()):
        raise MemoryFileError(
            f"the calibration must be {1 + len(layout.layers)} float32 numbers, got {list(phi.shape)}"
        )
    tokens = int(numbers[:, 0].sum(dtype=torch.int64))
    expected = blocks_of(layout, memory.payload_dtype, count, tokens, file.blocks["text"].shape[0])
    for name in sorted(expected.keys() | file.blocks.keys()):
        wanted, found = expected[name], file.blocks[name]
        if (wanted.dtype, wanted.shape) != (found.dtype, found.shape):
            raise ValueError(
                f"{name} of {count} entries with {tokens} tokens must be {wanted.dtype} {list(wanted.shape)}, "
                f"got {found.dtype} {list(found.shape)}"
            )
    if layout.layer_lengths and not fills(file.read("layer_lengths"), numbers[:, 0], len(layout.layers)):
        raise MemoryFileError("lengths of layers do not fill the payloads of their entries")
    tasks = tuple(name for name, _ in index["tasks"])
    store = StoredEntries(file, layout, memory.payload_dtype, read_table(file, numbers.numpy(), tasks))
    if not all(finite(store.keys(start, min(start + ROWS, count))) for start in range(0, count, ROWS)):
        raise MemoryFileError("a retrieval key holds numbers that are not finite")
    if lazy is None:
        lazy = os.name == "posix" and sum(file.blocks[name].nbytes for name in PARTS if name in expected) > LAZY_ABOVE
    memory._hold(Entries.stored(store) if lazy else Entries.read(store))
    memory.metadata = _checked_metadata(index.get("metadata", {}))
    if memory.nbytes != index["nbytes"]:
        raise MemoryFileError(f"tasks or size do not match: {memory.nbytes} bytes instead of {index['nbytes']}")
    memory.calibration = Calibration(phi[0].clone(), phi[1:].clone())
    memory.thresholds = {name: _finite(value) for name, value in index["tasks"] if value is not None}
    return memory


def _checked_metadata(metadata: Any) -> dict[str, str]:
    texts = isinstance(metadata, dict) and all(isinstance(x, str) for pair in metadata.items() for x in pair)
    if not texts or len(_encode(metadata)) > LARGEST_METADATA:
        raise MemoryFileError(f"metadata must be short texts by name, at most {LARGEST_METADATA:,} bytes of JSON")
    return dict(metadata)


def _finite(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise MemoryFileError(f"a threshold must be a finite number, got {value!r}")
    return float(value)
