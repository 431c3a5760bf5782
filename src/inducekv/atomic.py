"""Files that are written whole or not at all."""

import os
import re
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path

TEMPORARY = re.compile(r"\.memory-[0-9]+-[0-9a-f]{8}\.tmp")
"""Names of files that are being written."""


def write_atomically(path: Path, data: bytes) -> None:
    """Write under a temporary name, flush to the disk, rename."""
    write_parts_atomically(path.parent, [data], lambda: path.name)


def write_parts_atomically(folder: Path, parts: Iterable[bytes | memoryview], name: Callable[[], str]) -> Path:
    """As `write_atomically`, piece by piece.

    Args:
        folder: where to.
        parts: the file's bytes, one piece after another.
        name: called once all parts are written; gives the file's name.
    """
    temporary = folder / f".memory-{os.getpid()}-{secrets.token_hex(4)}.tmp"
    try:
        with temporary.open("xb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        path = folder / name()
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(folder)
    return path


def sync_folder(folder: Path) -> None:
    """Wait until the folder's names are on the disk, where the system can do that."""
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
