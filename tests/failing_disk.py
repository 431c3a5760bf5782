"""A disk that fails at a chosen call: as a crash, after which nothing is written any more, or only once."""

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest


class Crash(BaseException):
    """The process died."""


class _Writing:
    """A file that counts its writes."""

    def __init__(self, file: Any, step: Any) -> None:
        self._file, self._step = file, step

    def write(self, data: Any) -> int:
        self._step("write", lambda: self._file.write(bytes(data)[: len(data) // 2]))
        return self._file.write(data)

    def __enter__(self) -> "_Writing":
        return self

    def __exit__(self, *error: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


@contextmanager
def failing(patch: pytest.MonkeyPatch, survive: int, how: str) -> Iterator[list[str]]:
    """Let `survive` calls pass and fail the next; gives the names of calls made so far.

    Args:
        how: "crash before", "crash after" (the call is done, nothing after it), or "full" (an OSError, once).
    """
    calls: list[str] = []

    def step(name: str, half: Any = None) -> None:
        calls.append(name)
        if how == "full" and len(calls) == survive + 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        if how != "full" and len(calls) > survive:
            if half is not None and len(calls) == survive + 1:
                half()  # a write that was cut short
            raise Crash

    def wrapped(name: str) -> Any:
        real = getattr(os, name)

        def call(*arguments: Any, **options: Any) -> Any:
            if how == "crash after" and len(calls) == survive:
                calls.append(name)
                real(*arguments, **options)
                raise Crash
            step(name)
            return real(*arguments, **options)

        return call

    real_open = Path.open

    def opened(self: Path, mode: str = "r", *arguments: Any, **options: Any) -> Any:
        if mode == "xb":
            step("create")
            return _Writing(real_open(self, mode, *arguments, **options), step)
        return real_open(self, mode, *arguments, **options)

    with patch.context() as inside:
        for name in ("fsync", "replace", "rename", "unlink"):
            inside.setattr(os, name, wrapped(name))
        inside.setattr(Path, "open", opened)
        yield calls
