"""A memory on disk: `memory.json` and one `memory-<digest>.safetensors` that it names.

The rename of `memory.json` is the moment of change: before it the old memory is intact, after it the new one is.
The JSON carries the SHA-256 of the tensors and of itself, so a truncated, edited or mismatched file is refused.
"""

import hashlib
import json
import math
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import filelock
import safetensors
import safetensors.torch
import torch
from torch import Tensor

from inducekv.atomic import write_atomically
from inducekv.compression.storage import STORAGE_DTYPES
from inducekv.entry import Entry, Layout, Payload
from inducekv.fingerprint import FingerprintError as FingerprintError
from inducekv.fingerprint import check_fingerprint as check_fingerprint
from inducekv.retrieval import Calibration

if TYPE_CHECKING:
    from inducekv.backbone import Backbone
    from inducekv.memory import KVMemory

FORMAT, VERSION = "inducekv-memory", 1
INDEX = "memory.json"
LOCK = ".memory.lock"
NAME = re.compile(r"memory-[0-9a-f]{32}\.safetensors")
LARGEST_INDEX = 64 * 2**20
LARGEST_METADATA = 4 * 2**10
PATIENCE = 60.0
"""Seconds that `save` waits for another writer."""


class MemoryFileError(ValueError):
    """A memory's files are missing, truncated, edited, or not a memory at all."""


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
    data = safetensors.torch.save(_tensors(memory))
    digest = hashlib.sha256(data).hexdigest()
    name = f"memory-{digest[:32]}.safetensors"
    index = {
        "format": FORMAT,
        "version": VERSION,
        "file": name,
        "size": len(data),
        "sha256": digest,
        "budget": memory.budget,
        "nbytes": memory.nbytes,
        "entries": len(memory),
        "payload_dtype": memory.payload_dtype,
        "layout": {
            "layers": list(memory.layout.layers),
            "kv_heads": memory.layout.kv_heads,
            "head_dim": memory.layout.head_dim,
            "key_dim": memory.layout.key_dim,
        },
        "tasks": [[task, memory.thresholds.get(task)] for task in memory.tasks],
        "fingerprint": memory.fingerprint,
        "metadata": _checked_metadata(memory.metadata),
    }
    with lock(directory, PATIENCE):
        write_atomically(directory / name, data)
        write_atomically(directory / INDEX, _encode({**index, "index_sha256": _index_digest(index)}))
        for stale in [*directory.glob("memory-*.safetensors"), *directory.glob(".memory-*.tmp")]:
            if stale.name != name:
                stale.unlink(missing_ok=True)


def _tensors(memory: "KVMemory") -> dict[str, Tensor]:
    entries, layout = memory.entries, memory.layout
    place = {task: i for i, task in enumerate(memory.tasks)}
    shape, dtype = (0, len(layout.layers), layout.kv_heads, layout.head_dim), STORAGE_DTYPES[memory.payload_dtype]
    numbers = [[e.payload.tokens, e.span, e.answer_length, place[e.task]] for e in entries]
    phi = torch.cat([memory.calibration.phi_tau.reshape(1), memory.calibration.phi_lambda])
    tensors = {
        "keys": _joined([e.key[None] for e in entries], (0, layout.key_dim), torch.float16),
        "payload_keys": _joined([e.payload.keys for e in entries], shape, dtype),
        "payload_values": _joined([e.payload.values for e in entries], shape, dtype),
        "numbers": torch.tensor(numbers, dtype=torch.int32).reshape(-1, 4),
        "text": torch.frombuffer(bytearray(b"".join(e.text for e in entries)) or bytearray(1), dtype=torch.uint8),
        "calibration": phi.detach().to("cpu", torch.float32),
    }
    if not entries:
        tensors["text"] = torch.empty(0, dtype=torch.uint8)
    if memory.payload_dtype == "int8":
        for name in ("key_scales", "value_scales"):
            tensors[name] = _joined([getattr(e.payload, name) for e in entries], shape[:-1], torch.float16)
    return {name: tensor.contiguous() for name, tensor in tensors.items()}


def _joined(parts: list[Tensor], empty: tuple[int, ...], dtype: torch.dtype) -> Tensor:
    return torch.cat(parts) if parts else torch.empty(empty, dtype=dtype)


def _encode(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"), sort_keys=True).encode()


def _index_digest(index: dict[str, Any]) -> str:
    return hashlib.sha256(_encode({k: v for k, v in index.items() if k != "index_sha256"})).hexdigest()


def load(kind: type["KVMemory"], directory: Path, backbone: "Backbone | None") -> "KVMemory":
    """Read a memory. Nothing in the files is trusted: sizes, names, checksums and shapes are checked before use.

    Raises:
        MemoryFileError: files are missing, truncated, edited, of another format or a newer version.
        FingerprintError: the memory was made for another model than `backbone`.
    """
    index = _read_index(directory)
    tensors = _read_tensors(directory, index)
    try:
        memory = _build(kind, index, tensors)
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
    if index.get("version") != VERSION:
        raise MemoryFileError(f"{path} has format version {index.get('version')!r}, this library reads {VERSION}")
    if index.get("index_sha256") != _index_digest(index):
        raise MemoryFileError(f"{path} was edited or damaged: its checksum does not match")
    return index


def _read_tensors(directory: Path, index: dict[str, Any]) -> dict[str, Tensor]:
    name, size = index.get("file"), index.get("size")
    if not isinstance(name, str) or not NAME.fullmatch(name) or not isinstance(size, int):
        raise MemoryFileError(f"{directory / INDEX} names no valid tensor file: {name!r}")
    path = directory / name
    if not path.is_file():
        raise MemoryFileError(f"{path} is missing; {INDEX} refers to it")
    if path.stat().st_size != size:
        raise MemoryFileError(f"{path} is truncated or edited: {path.stat().st_size:,} bytes instead of {size:,}")
    data = path.read_bytes()
    if hashlib.sha256(data).hexdigest() != index.get("sha256"):
        raise MemoryFileError(f"{path} was edited or damaged: its checksum does not match")
    try:
        return safetensors.torch.load(data)
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        raise MemoryFileError(f"{path} is not a safetensors file: {error}") from error


def _build(kind: type["KVMemory"], index: dict[str, Any], tensors: dict[str, Tensor]) -> "KVMemory":
    layout = Layout(**{**index["layout"], "layers": tuple(index["layout"]["layers"])})
    memory = kind(index["budget"], layout, index["payload_dtype"], index["fingerprint"])
    numbers, phi = tensors["numbers"], tensors["calibration"]
    count = index["entries"]
    if tuple(numbers.shape) != (count, 4) or numbers.dtype != torch.int32 or bool((numbers < 0).any()):
        raise MemoryFileError(
            f"the table of entries must be int32 [{count}, 4], got {numbers.dtype} {list(numbers.shape)}"
        )
    if tuple(phi.shape) != (1 + len(layout.layers),) or phi.dtype != torch.float32 or bool(phi.isnan().any()):
        raise MemoryFileError(
            f"the calibration must be {1 + len(layout.layers)} float32 numbers, got {list(phi.shape)}"
        )
    lengths = numbers[:, 0].tolist()
    names = [
        "payload_keys",
        "payload_values",
        *(["key_scales", "value_scales"] if memory.payload_dtype == "int8" else []),
    ]
    if any(tensors[name].shape[0] != sum(lengths) for name in names) or tensors["keys"].shape[0] != count:
        raise MemoryFileError(f"payloads do not hold the {sum(lengths)} tokens that {count} entries claim")
    parts = {name: tensors[name].split(lengths) for name in names} if count else {}
    lines = tensors["text"].numpy().tobytes().decode().split("\n")[:-1]
    if len(lines) != count:
        raise MemoryFileError(f"{len(lines)} texts for {count} entries")
    tasks = [name for name, _ in index["tasks"]]
    entries = []
    for i, (line, (_, span, answer_length, task)) in enumerate(zip(lines, numbers.tolist(), strict=True)):
        name, question, answer = json.loads(line)
        payload = Payload(*(parts[part][i] for part in names))
        entries.append(Entry(name, tasks[task], tensors["keys"][i], payload, span, answer_length, question, answer))
    memory.replace_all(entries)
    memory.metadata = _checked_metadata(index.get("metadata", {}))
    if list(memory.tasks) != tasks or memory.nbytes != index["nbytes"]:
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
