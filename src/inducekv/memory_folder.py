"""The folder of a memory: one writer at a time, and nothing left behind by an earlier one."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import filelock

from inducekv.atomic import TEMPORARY, sync_folder
from inducekv.memory_index import EARLIER_STATE, INDEX, NAMES_ALL, STATE, TENSORS, generation_of, read_index

LOCK = ".memory.lock"


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


def sweep(directory: Path) -> None:
    """Remove what earlier states and interrupted writers left: files that have a name of ours and are not in use.

    To be called under `lock`. Where no index says what is in use, only half-written files go.

    Raises:
        MemoryFileError: the index is damaged, so that nothing says what is in use; nothing is removed.
        OSError: a file cannot be removed.
    """
    ours, kept = [TEMPORARY], set()
    if (directory / INDEX).exists():
        index = read_index(directory)
        state = generation_of(directory, index).training_state
        kept = {index["file"]} if state is None else {index["file"], state.path.name}
        ours += [TENSORS, STATE, *([re.compile(re.escape(EARLIER_STATE))] if index["version"] >= NAMES_ALL else [])]
    removed = False
    for path in directory.iterdir():
        if any(name.fullmatch(path.name) for name in ours) and path.name not in kept and not path.is_dir():
            path.unlink(missing_ok=True)
            removed = True
    if removed:
        sync_folder(directory)
