"""An unfinished run on disk: what was measured so far and every method's state after the last whole task."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from inducekv.atomic import write_atomically
from inducekv.continual.methods.base import Method
from inducekv.continual.results import MAX_FILE_BYTES, safe_path
from inducekv.continual.runner import MethodResult

FORMAT = "inducekv-bench-run-1"
INDEX = "run.json"


class Checkpoint:
    """The folder of one unfinished run; killed at any moment, it holds the last task that was saved whole.

    Args:
        folder: made when first written to.
        identity: JSON values that an earlier run must share for this one to go on from it.
    """

    def __init__(self, folder: Path, identity: dict[str, Any]) -> None:
        self.folder, self.identity = folder, identity

    def save(self, methods: Sequence[Method], results: Sequence[MethodResult], peaks: dict[str, int]) -> None:
        """Writes the states beside the last ones, then the index that points at them, then drops the last ones."""
        self.folder.mkdir(parents=True, exist_ok=True)
        (self.folder.parent / ".gitignore").write_text("*\n")
        states = self.folder / f"after-{len(results[0].learn_of_task)}-{os.getpid()}-{secrets.token_hex(4)}"
        for method in methods:
            place = states / safe_path(method.name)
            place.mkdir(parents=True)
            method.save(place)
        index = {
            "format": FORMAT,
            "identity": self.identity,
            "states": states.name,
            "peaks": peaks,
            "results": [result.to_state() for result in results],
        }
        write_atomically(self.folder / INDEX, json.dumps(index, ensure_ascii=False).encode())
        for old in self.folder.glob("after-*"):
            if old != states:
                shutil.rmtree(old, ignore_errors=True)

    def resume(self, methods: Sequence[Method]) -> tuple[list[MethodResult], dict[str, int]]:
        """Brings the methods back to the last task saved; results so far and peaks of memory, empty for a new run.

        A run of other settings, or one whose files are damaged, is dropped: then all starts anew.
        """
        try:
            if (self.folder / INDEX).stat().st_size > MAX_FILE_BYTES:
                raise ValueError("too large")
            index = json.loads((self.folder / INDEX).read_text(encoding="utf-8"))
            states = self.folder / safe_path(index["states"])
            results = [MethodResult.from_state(state) for state in index["results"]]
            usable = index["format"] == FORMAT and index["identity"] == self.identity
            if not usable or [result.name for result in results] != [method.name for method in methods]:
                raise ValueError("another run's")
        except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            self.drop()
            return [], {}
        for method in methods:
            method.load(states / safe_path(method.name))
        return results, index["peaks"]

    def drop(self) -> None:
        """Removes the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
