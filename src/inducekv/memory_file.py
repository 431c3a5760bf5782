"""A memory on disk: `memory.json`, and the tensors and the training state that it names.

The rename of `memory.json` is the moment of change, for all of them at once: before it the old memory is intact, after
it the new one is. The JSON counts these changes and carries the SHA-256 of the other files and of itself, so a
truncated, edited or mismatched file is refused, and so is saving what was read before someone else's change.
"""

import hashlib
import math
import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from inducekv.atomic import write_atomically, write_parts_atomically
from inducekv.bytes import parse_bytes
from inducekv.config import LARGEST_MASS
from inducekv.entries import Entries, raw
from inducekv.error_text import shown
from inducekv.fingerprint import FingerprintError as FingerprintError
from inducekv.fingerprint import check_fingerprint as check_fingerprint
from inducekv.layer_lengths import fills
from inducekv.layout import Layout
from inducekv.memory_folder import LOCK as LOCK
from inducekv.memory_folder import MemoryLockedError as MemoryLockedError
from inducekv.memory_folder import lock, sweep
from inducekv.memory_index import FORMAT as FORMAT
from inducekv.memory_index import INDEX as INDEX
from inducekv.memory_index import (
    LARGEST_METADATA,
    NAMES_ALL,
    Generation,
    NamedFile,
    generation_of,
    index_nbytes,
    read_index,
)
from inducekv.memory_index import VERSION as VERSION
from inducekv.memory_index import encode as _encode
from inducekv.memory_index import index_digest as _index_digest
from inducekv.retrieval import UNSCALED, Calibration
from inducekv.stored_entries import PARTS, StoredEntries, blocks_of, finite
from inducekv.table_reader import read_table
from inducekv.tensor_file import MemoryFileError as MemoryFileError
from inducekv.tensor_file import TensorFile, header_nbytes, header_of
from inducekv.training_state import TrainingState

if TYPE_CHECKING:
    from inducekv.backbone import Backbone
    from inducekv.memory import KVMemory

LAZY_ABOVE = 256 * 2**20
"""Payloads of more bytes than this stay in the file until they are retrieved, unless told otherwise. CHOICE: below it
everything is read in about a second, and the memory outlives its file; above it keys and table alone are a fraction."""
ROWS = 4096
"""Keys that are checked at once."""
PATIENCE = 60.0
"""Seconds that `save` waits for another writer."""
NEWER = 10
"""Changes by a writer that reading goes along with before it gives up."""
LARGEST_THRESHOLD = 1e30
LARGEST_BUDGET = 2**62
HAS_MASS = 4
"""The version from which on the calibration has a mass."""
LEAST_TAU, LARGEST_TAU = 1e-6, 1e6
"""Temperatures that a file may say (CHOICE): beyond them the weights of entries are no numbers any more."""


class StaleMemoryError(ValueError):
    """The memory in a folder is not the one that was loaded from there any more."""


def save(memory: "KVMemory", directory: Path, training_state: TrainingState | None = None) -> None:
    """Write a memory and its training state so that a crash at any point leaves the old ones or the new ones, whole.

    Same memory, same bytes; saving what is there already changes nothing. Files of earlier states are removed before
    and after the change, so nothing dropped stays on disk. Of the training state only examples of tasks that the memory
    has entries of are written.

    Args:
        training_state: to write beside the memory. None: the one in the folder stays if the memory was loaded from
            there or saved there before, else there is none.

    Raises:
        MemoryLockedError: another process kept writing for more than `PATIENCE` seconds.
        StaleMemoryError: someone else has changed the memory in the folder since this one was loaded or saved there.
        BudgetError: the files would take more than the budget.
        MemoryFileError: the folder holds a damaged memory, or the calibration or a threshold is not finite.
        OSError: the directory cannot be written; an old memory there is untouched.
    """
    memory.check_size()
    index = index_of(memory)
    _calibration_of(_numbers_of(memory.calibration), len(memory.layout.layers))  # what could not be read again
    memory.thresholds = {task: _finite(limit) for task, limit in memory.thresholds.items()}
    with lock(directory, PATIENCE):
        sweep(directory)
        held = read_index(directory) if (directory / INDEX).exists() else None
        before = None if held is None else generation_of(directory, held)
        _check_current(memory, directory, before)
        try:
            path = _write_tensors(memory, directory, index)
            state = _write_state(memory, directory, before, training_state)
            index["training_state"] = None if state is None else {"file": state.path.name, "sha256": state.sha256}
            index["generation"] = before.number if before is not None else 1
            if before is not None and (before.number == 0 or _index_digest(index) != before.digest):
                index["generation"] += 1
            index["index_sha256"] = _index_digest(index)
            if before is None or before.digest != index["index_sha256"]:
                write_atomically(directory / INDEX, _encode(index))
        except BaseException:
            with suppress(OSError, MemoryFileError):  # what went wrong first is raised
                sweep(directory)
                _note(memory, directory, index)
            raise
        _note(memory, directory, index)
        sweep(directory)
        if any(store.file.path.parent.resolve() == directory.resolve() for store in memory.entries.stores):
            file = TensorFile(path)  # the file read so far lives, without a name, for as long as it is open
            file.read_header()
            table = memory.entries.table
            memory._moved(Entries.stored(StoredEntries(file, memory.layout, memory.payload_dtype, table)))


def _check_current(memory: "KVMemory", directory: Path, found: Generation | None) -> None:
    known = memory._generations.get(directory.resolve())
    if known is not None and found is not None and known.digest != found.digest:
        raise StaleMemoryError(
            f"the memory in {directory} was changed by someone else (generation {found.number}, this one is of "
            f"{known.number}): saving would undo that, forgetting included; load it again, or save to another folder"
        )


def _note(memory: "KVMemory", directory: Path, index: dict[str, Any]) -> None:
    """Remember a folder's generation if it is the one that this memory wrote."""
    found = read_index(directory)
    if found["index_sha256"] == index.get("index_sha256"):
        memory._generations[directory.resolve()] = generation_of(directory, found)


def _write_tensors(memory: "KVMemory", directory: Path, index: dict[str, Any]) -> Path:
    """Write the tensors under the name that their digest gives, and note both in the index."""
    table = memory.entries.table
    header, order = header_of(blocks_of(memory.layout, memory.payload_dtype, len(memory), table.tokens, table.text))
    digest, size = hashlib.sha256(), 0

    def parts() -> Iterator[bytes | memoryview]:
        nonlocal size
        for part in _parts(memory, header, order):
            digest.update(part)
            size += len(part)
            yield part

    path = write_parts_atomically(directory, parts(), lambda: f"memory-{digest.hexdigest()[:32]}.safetensors")
    index |= {"file": path.name, "size": size, "sha256": digest.hexdigest()}
    return path


def _write_state(
    memory: "KVMemory", directory: Path, before: Generation | None, given: TrainingState | None
) -> NamedFile | None:
    """The training state's file, written if it is not there yet."""
    if given is None:
        known = memory._generations.get(directory.resolve())
        if before is None or known is None or before.training_state is None:
            return None
        if before.tasks <= set(memory.tasks) and before.training_state.sha256 is not None:
            return before.training_state
        given = TrainingState.read(before.training_state)
    ids = {entry.id for entry in memory.entries} if given.behind else set[str]()
    kept = given.of_entries(ids, memory.tasks)
    if not kept.anchors and not kept.behind:
        return None
    data = kept.to_bytes()
    digest = hashlib.sha256(data).hexdigest()
    path = directory / f"training_state-{digest[:32]}.safetensors"
    write_atomically(path, data)
    return NamedFile(path, digest)


def stored_state(memory: "KVMemory", directory: Path) -> TrainingState:
    """The training state that belongs to a memory as it was loaded from a folder, or saved there.

    Raises:
        ValueError: it is missing or damaged, or someone else has changed the memory since.
    """
    known = memory._generations.get(directory.resolve())
    if known is None or known.training_state is None:
        return TrainingState()
    try:
        return TrainingState.read(known.training_state)
    except ValueError:
        if (directory / INDEX).exists():
            _check_current(memory, directory, generation_of(directory, read_index(directory)))
        raise


def index_of(memory: "KVMemory", metadata: dict[str, str] | None = None) -> dict[str, Any]:
    """What `memory.json` says, but for the names of files.

    Args:
        metadata: instead of the memory's.

    Raises:
        MemoryFileError: the metadata is not short texts by name.
    """
    layout = memory.layout
    return {
        "format": FORMAT,
        "version": VERSION,
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
        "metadata": _checked_metadata(memory.metadata if metadata is None else metadata),
    }


def framing_nbytes(memory: "KVMemory", metadata: dict[str, str] | None = None) -> int:
    """Bytes, at most, that the files take beside what `KVMemory.nbytes` counts: `memory.json`, the tensors' header.

    The same for any entries, so that bytes of entries add up.
    """
    largest = max(memory.budget, 1)
    blocks = blocks_of(memory.layout, memory.payload_dtype, 0, 0, 0)
    return header_nbytes(blocks, largest) + index_nbytes(index_of(memory, metadata), largest)


def _parts(memory: "KVMemory", header: bytes, order: list[str]) -> Iterator[bytes | memoryview]:
    """The tensor file in pieces."""
    yield header
    for name in order:
        if name == "calibration":
            yield raw(_numbers_of(memory.calibration))
        elif name == "numbers":
            yield memory.entries.table.numbers.tobytes()
        else:
            yield from memory.entries.parts(name)


def _numbers_of(calibration: Calibration) -> Float[Tensor, " numbers"]:
    """The calibration as it lies in the file, float32: phi_tau, mass, then phi_lambda of each layer."""
    return torch.cat([calibration.phi_tau.reshape(1), calibration.mass.reshape(1), calibration.phi_lambda]).float()


def _calibration_of(numbers: Tensor, layers: int, version: int = VERSION) -> Calibration:
    """The inverse of `_numbers_of`. Before the mass came, an infinite phi_lambda said lambda = 1."""
    before = 2 if version >= HAS_MASS else 1
    if tuple(numbers.shape) != (before + layers,) or numbers.dtype != torch.float32:
        raise MemoryFileError(f"the calibration must be {before + layers} float32 numbers, got {list(numbers.shape)}")
    mass = numbers[1].clone() if version >= HAS_MASS else torch.zeros(())
    scales = numbers[before:].clone()
    if version < HAS_MASS:
        scales = scales.masked_fill(scales == math.inf, UNSCALED)
    calibration = Calibration(numbers[0].clone(), scales, mass)
    known = bool(scales.isfinite().all()) and abs(float(mass)) <= LARGEST_MASS
    if not LEAST_TAU <= float(calibration.tau) <= LARGEST_TAU or not known:
        raise MemoryFileError(
            f"the calibration must be finite, with a temperature from {LEAST_TAU:g} to {LARGEST_TAU:g} and a mass of "
            f"at most {LARGEST_MASS:g}; got {shown(numbers.tolist())}"
        )
    return calibration


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
    for left in reversed(range(NEWER)):
        index = read_index(directory)
        try:
            file = _open_tensors(directory, index)
            break
        except MemoryFileError:
            if not left or read_index(directory) == index:
                raise  # else a writer has put a new generation in place meanwhile
    try:
        memory = _build(kind, index, file, lazy)
    except MemoryFileError:
        raise
    except (KeyError, TypeError, ValueError, IndexError, AttributeError, ArithmeticError, RuntimeError) as error:
        raise MemoryFileError(f"the memory in {directory} is not consistent: {error}") from error
    memory._generations[directory.resolve()] = generation_of(directory, index)
    if backbone is not None:
        check_fingerprint(memory.fingerprint, backbone)
    return memory


def _open_tensors(directory: Path, index: dict[str, Any]) -> TensorFile:
    path, size = directory / index["file"], index["size"]
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
    budget, earlier = parse_bytes(index["budget"]), index["version"] < NAMES_ALL
    if budget > LARGEST_BUDGET:
        raise MemoryFileError(f"the budget is {shown(budget)} bytes, at most {LARGEST_BUDGET:,} are allowed")
    memory = kind(LARGEST_BUDGET if earlier else budget, layout, index["payload_dtype"], index["fingerprint"])
    memory.metadata = _checked_metadata(index.get("metadata", {}))
    numbers, phi, count = file.read("numbers"), file.read("calibration"), index["entries"]
    if tuple(numbers.shape) != (count, 4) or numbers.dtype != torch.int32 or bool((numbers < 0).any()):
        raise MemoryFileError(
            f"the table of entries must be int32 [{count}, 4], got {numbers.dtype} {list(numbers.shape)}"
        )
    calibration = _calibration_of(phi, len(layout.layers), index["version"])
    tokens = int(numbers[:, 0].sum(dtype=torch.int64))
    expected = blocks_of(layout, memory.payload_dtype, count, tokens, file.blocks["text"].shape[0])
    for name in sorted(expected.keys() | file.blocks.keys()):
        wanted, found = expected[name], file.blocks[name]
        if name == "calibration":
            continue  # checked above, by the file's version
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
    nbytes = memory.nbytes - (0 if index["version"] >= HAS_MASS else phi.element_size())
    if earlier:  # whose budget did not count the index and the header
        if nbytes > budget:
            raise MemoryFileError(f"it holds {nbytes:,} bytes, its budget is {shown(budget)}")
        memory.budget = budget
        memory.budget = max(budget, memory.file_nbytes)
    if nbytes != index["nbytes"]:
        raise MemoryFileError(f"tasks or size do not match: {nbytes} bytes instead of {index['nbytes']}")
    memory.calibration = calibration
    memory.thresholds = {name: _finite(limit) for name, limit in index["tasks"] if limit is not None}
    return memory


def _checked_metadata(metadata: Any) -> dict[str, str]:
    texts = isinstance(metadata, dict) and all(isinstance(x, str) for pair in metadata.items() for x in pair)
    if not texts or len(_encode(metadata)) > LARGEST_METADATA:
        raise MemoryFileError(f"metadata must be short texts by name, at most {LARGEST_METADATA:,} bytes of JSON")
    return dict(metadata)


def _finite(given: Any) -> float:
    if isinstance(given, bool) or not isinstance(given, int | float) or not abs(given) <= LARGEST_THRESHOLD:
        raise MemoryFileError(f"a threshold must be a finite number, got {shown(given)}")
    return float(given)
