"""What learning keeps beside the memory and answering never needs: anchors, a few raw examples of every task."""

import hashlib
import json
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from inducekv.atomic import write_atomically
from inducekv.error_text import message
from inducekv.examples import Example, named_errors, open_image
from inducekv.json_object import parse_json
from inducekv.memory_index import EARLIER_STATE as FILE_NAME
from inducekv.memory_index import NamedFile, training_state_of
from inducekv.pictures import image_file
from inducekv.splits import balanced_order

FORMAT = 2
"""What is written: a checksum beside the anchors. 1 had none, and is read."""
MAX_FILE_BYTES = 4 * 2**30
MAX_ANCHORS = 2**20


@dataclass(frozen=True)
class Anchor:
    """A raw example kept to measure whether an earlier task is still answered (specs/inducekv.md, section 3).

    Attributes:
        task: its task.
        id: its example's identifier.
        question, answer: texts.
        pictures: encoded picture files (as given, or PNG where the picture was given as an object).
    """

    task: str
    id: str
    question: str
    answer: str
    pictures: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, example: Example, task: str) -> "Anchor":
        """Keeps a copy of an example.

        Raises:
            ValueError: it has no answer, or a picture cannot be read.
        """
        if not example.answer:
            raise ValueError(f"example {example.identifier!r} has no answer, so it cannot be an anchor")
        with named_errors(example):
            pictures = tuple(map(image_file, example.images))
            return cls(task, example.identifier, example.question, example.answer, pictures)

    def example(self) -> Example:
        """The example again, at every call the same object, pictures decoded on use.

        Raises:
            ValueError: a picture is broken or over a limit.
        """
        return self._example

    @cached_property
    def _example(self) -> Example:
        for data in self.pictures:
            open_image(data, f"of anchor {self.id}")
        return Example(self.question, self.answer, self.pictures, self.id, origin=f"kept of task {self.task}")

    @property
    def nbytes(self) -> int:
        texts = (self.task, self.id, self.question, self.answer)
        return sum(len(text.encode()) for text in texts) + sum(map(len, self.pictures))


@dataclass
class TrainingState:
    """Anchors of all tasks learned so far.

    Attributes:
        anchors: in the order of their tasks.
        behind: of entries that were encoded behind other examples, by entry id, the ids of those: their questions must
            never be asked of the entry, which has seen their answers.
    """

    anchors: list[Anchor] = field(default_factory=list)
    behind: dict[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of texts and pictures; reported apart from the memory's, which they are no part of."""
        return sum(anchor.nbytes for anchor in self.anchors)

    @property
    def tasks(self) -> list[str]:
        return list(dict.fromkeys(anchor.task for anchor in self.anchors))

    def updated(self, examples: Sequence[Example], task: str, limit: int, seed: int) -> "TrainingState":
        """A new state with examples of `task` taken in, every task having an equal share of `limit` anchors.

        CHOICE: within a task anchors are drawn balanced over answers, by a priority that does not change as the share
        shrinks.
        """
        known = {anchor.id for anchor in self.anchors if anchor.task == task}
        pools: dict[str, list[Anchor | Example]] = {}
        for anchor in self.anchors:
            pools.setdefault(anchor.task, []).append(anchor)
        pools.setdefault(task, []).extend(example for example in examples if example.identifier not in known)
        share, extra = divmod(limit, len(pools))
        kept = []
        for place, (name, pool) in enumerate(pools.items()):
            plain = [Example(a.question, a.answer, (), a.id if isinstance(a, Anchor) else a.identifier) for a in pool]
            chosen = sorted(balanced_order(plain, seed, "anchors")[: share + (place < extra)])
            kept += [item if isinstance(item, Anchor) else Anchor.of(item, name) for item in (pool[i] for i in chosen)]
        return TrainingState(kept, dict(self.behind))

    def of_entries(self, ids: Collection[str], tasks: Collection[str]) -> "TrainingState":
        """What is left of it beside a memory with these entries and tasks."""
        anchors = [anchor for anchor in self.anchors if anchor.task in tasks]
        return TrainingState(anchors, {name: others for name, others in self.behind.items() if name in ids})

    def forget(self, task: str) -> int:
        """Drops a task's anchors and says how many there were."""
        before = len(self.anchors)
        self.anchors = [anchor for anchor in self.anchors if anchor.task != task]
        return before - len(self.anchors)

    def to_bytes(self) -> bytes:
        """The state as a safetensors file that holds its own checksum; same state, same bytes."""
        rows = [
            {
                "task": a.task,
                "id": a.id,
                "question": a.question,
                "answer": a.answer,
                "pictures": list(map(len, a.pictures)),
            }
            for a in self.anchors
        ]
        pictures = b"".join(data for anchor in self.anchors for data in anchor.pictures)
        held = {"anchors": rows, "behind": {name: list(others) for name, others in sorted(self.behind.items())}}
        texts = json.dumps(held if self.behind else rows, ensure_ascii=False).encode()
        arrays = {
            name: np.frombuffer(data, dtype=np.uint8)
            for name, data in (("pictures", pictures), ("anchors", texts), ("sha256", _digest(texts, pictures)))
        }
        return safetensors.numpy.save(arrays, {"format": f"inducekv-training-state-{FORMAT}"})

    def save(self, folder: str | Path) -> Path:
        """Writes `training_state.safetensors` into a folder without a memory, whole or not at all.

        Beside a memory `memory_file.save` writes it, under a name that the memory's index gives.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        target = folder / FILE_NAME
        write_atomically(target, self.to_bytes())
        return target

    @staticmethod
    def exists(folder: str | Path) -> bool:
        """Whether a folder holds a training state."""
        named = training_state_of(Path(folder))
        return named is not None and named.path.is_file()

    @classmethod
    def load(cls, folder: str | Path) -> "TrainingState":
        """Reads what `save` or a memory's `save_memory` wrote; a folder without it gives an empty state.

        Raises:
            ValueError: the file is damaged, of another format, or too large.
        """
        named = training_state_of(Path(folder))
        while named is not None:
            try:
                return cls.read(named)
            except ValueError:
                again = training_state_of(Path(folder))
                if again == named:
                    raise  # else a writer has put a new generation in place meanwhile
                named = again
        return cls()

    @classmethod
    def read(cls, named: NamedFile) -> "TrainingState":
        """Reads one file.

        Raises:
            ValueError: it is missing, damaged, of another format, or too large.
        """
        path = named.path
        try:
            if (size := path.stat().st_size) > MAX_FILE_BYTES:
                raise ValueError(f"{size:,} bytes, at most {MAX_FILE_BYTES:,} are allowed")
            data = path.read_bytes()
            if named.sha256 is not None and hashlib.sha256(data).hexdigest() != named.sha256:
                raise ValueError("its checksum does not match")
            arrays = safetensors.numpy.load(data)
            texts, pictures = arrays["anchors"].tobytes(), arrays["pictures"].tobytes()
            if unknown := arrays.keys() - {"anchors", "pictures", "sha256"}:
                raise ValueError(f"it holds {min(unknown)!r} too")
            if "sha256" in arrays and arrays["sha256"].tobytes() != _digest(texts, pictures):
                raise ValueError("its checksum does not match")
            held = parse_json(texts)
            rows, behind = (held["anchors"], held["behind"]) if isinstance(held, dict) else (held, {})
            return cls(list(_anchors(rows, pictures)), _behind(behind))
        except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
            raise ValueError(
                message(
                    f"training state {path} is missing or damaged ({error}); answering does not need it: to learn "
                    "without replaying examples of earlier tasks, use learn --no-replay, or set anchors=0"
                )
            ) from error


def _digest(texts: bytes, pictures: bytes) -> bytes:
    return hashlib.sha256(hashlib.sha256(texts).digest() + hashlib.sha256(pictures).digest()).digest()


def _behind(held: Any) -> dict[str, tuple[str, ...]]:
    lists = isinstance(held, dict) and len(held) <= MAX_ANCHORS and all(isinstance(x, list) for x in held.values())
    if not lists or not all(isinstance(name, str) for others in held.values() for name in others):
        raise ValueError("what entries were encoded behind must be lists of ids by the entry's id")
    return {name: tuple(others) for name, others in held.items()}


def _anchors(rows: Any, pictures: bytes) -> Iterable[Anchor]:
    if not isinstance(rows, list) or len(rows) > MAX_ANCHORS:
        raise ValueError(f"anchors must be a list of at most {MAX_ANCHORS:,}")
    start = 0
    for row in rows:
        lengths = row["pictures"]
        texts = [row[name] for name in ("task", "id", "question", "answer")]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("an anchor's texts must be text")
        "".join(texts).encode()  # a lone surrogate cannot be written again
        if not isinstance(lengths, list) or not all(type(n) is int and 0 <= n <= len(pictures) for n in lengths):
            raise ValueError("an anchor's picture sizes must be numbers of bytes")
        cuts = [start]
        for length in lengths:
            cuts.append(cuts[-1] + length)
        if cuts[-1] > len(pictures):
            raise ValueError("an anchor's pictures lie outside the file")
        task, name, question, answer = texts
        yield Anchor(task, name, question, answer, tuple(pictures[a:b] for a, b in pairwise(cuts)))
        start = cuts[-1]
    if start != len(pictures):
        raise ValueError("there are more picture bytes than anchors account for")
