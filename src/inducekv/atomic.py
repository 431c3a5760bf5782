"""Files that are written whole or not at all."""

import os
import secrets
from collections.abc import Callable, Iterable
from pathlib import Path


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
    if os.name == "posix":
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    return path
