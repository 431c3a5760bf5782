"""An unfinished run on disk: what was measured so far and every method's state after the last whole task."""

from __future__ import annotations

import json
import os
import secrets
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from inducekv.atomic import write_atomically
from inducekv.continual.methods.base import Method
from inducekv.continual.results import MAX_FILE_BYTES, ResultError, safe_path
from inducekv.continual.runner import MethodResult
from inducekv.entry import shorten

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

        Raises:
            ResultError: there is an unfinished run that cannot be read, is damaged or was made with other settings. It
                is left as it is: hours of work are not given up because a disk was away or an option was forgotten.
        """
        try:
            text = self._index()
        except OSError as error:
            raise self._refusal(f"cannot be read ({error.strerror or type(error).__name__})") from error
        if text is None:
            return [], {}
        try:
            index = json.loads(text)
            states = self.folder / safe_path(index["states"])
            results = [MethodResult.from_state(state) for state in index["results"]]
            known, identity, peaks = index["format"] == FORMAT, dict(index["identity"]), dict(index["peaks"])
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise self._refusal("is damaged") from error
        if not known or identity != self.identity or [each.name for each in results] != [each.name for each in methods]:
            raise self._refusal(f"was made with other settings ({_difference(identity, self.identity)})")
        try:
            for method in methods:
                method.load(states / safe_path(method.name))
        except (OSError, ValueError, KeyError, TypeError, RuntimeError, EOFError, SafetensorError) as error:
            raise self._refusal(f"cannot be read (state of {method.name}: {type(error).__name__})") from error
        return results, peaks

    def drop(self) -> None:
        """Removes the folder; from then on there is no unfinished run.

        Raises:
            OSError: its index cannot be removed.
        """
        (self.folder / INDEX).unlink(missing_ok=True)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _index(self) -> bytes | None:
        try:
            if (self.folder / INDEX).stat().st_size > MAX_FILE_BYTES:
                raise self._refusal("is damaged (too large)")
            return (self.folder / INDEX).read_bytes()
        except FileNotFoundError:
            return None

    def _refusal(self, what: str) -> ResultError:
        return ResultError(
            f"the unfinished run in {shorten(str(self.folder), 200)} {what} and was left as it is; mend that and run "
            "again to go on with it, or start it anew: the same command with --restart"
        )


def _difference(made: dict[str, Any], now: dict[str, Any]) -> str:
    """What two identities differ in, in at most 150 bytes."""
    names = [name for name in {**made, **now} if made.get(name) != now.get(name)]
    said = (
        f"{name} {made.get(name)}, now {now.get(name)}" if _short(made.get(name), now.get(name)) else f"other {name}"
        for name in names
    )
    return shorten("; ".join(said) or "another format or other methods", 150)


def _short(*values: Any) -> bool:
    return all(value is None or isinstance(value, int | float) or len(str(value)) <= 20 for value in values)
