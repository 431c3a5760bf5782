"""What learning keeps beside the memory and answering never needs: anchors, a few raw examples of every task."""

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.numpy
from safetensors import SafetensorError

from inducekv.atomic import write_atomically
from inducekv.examples import Example, named_errors, open_image
from inducekv.pictures import image_file
from inducekv.splits import balanced_order

FILE_NAME = "training_state.safetensors"
FORMAT = 1
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
    """

    anchors: list[Anchor] = field(default_factory=list)

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
        return TrainingState(kept)

    def forget(self, task: str) -> int:
        """Drops a task's anchors and says how many there were."""
        before = len(self.anchors)
        self.anchors = [anchor for anchor in self.anchors if anchor.task != task]
        return before - len(self.anchors)

    def save(self, folder: str | Path) -> Path:
        """Writes `training_state.safetensors` into a folder, whole or not at all; same state, same bytes."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        pictures = [data for anchor in self.anchors for data in anchor.pictures]
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
        arrays = {
            "pictures": np.frombuffer(b"".join(pictures), dtype=np.uint8),
            "anchors": np.frombuffer(json.dumps(rows, ensure_ascii=False).encode(), dtype=np.uint8),
        }
        target = folder / FILE_NAME
        write_atomically(target, safetensors.numpy.save(arrays, {"format": f"inducekv-training-state-{FORMAT}"}))
        return target

    @staticmethod
    def exists(folder: str | Path) -> bool:
        """Whether a folder holds a training state."""
        return (Path(folder) / FILE_NAME).is_file()

    @classmethod
    def load(cls, folder: str | Path) -> "TrainingState":
        """Reads what `save` wrote; a folder without it gives an empty state (learning then goes on without anchors).

        Raises:
            ValueError: the file is damaged, of another format, or too large.
        """
        path = Path(folder) / FILE_NAME
        if not path.is_file():
            return cls()
        if path.stat().st_size > MAX_FILE_BYTES:
            raise ValueError(f"training state {path}: {path.stat().st_size:,} bytes, at most {MAX_FILE_BYTES:,}")
        try:
            arrays = safetensors.numpy.load(path.read_bytes())
            rows = json.loads(arrays["anchors"].tobytes().decode())
            return cls(list(_anchors(rows, arrays["pictures"].tobytes())))
        except (SafetensorError, KeyError, TypeError, ValueError, RecursionError) as error:
            raise ValueError(
                f"training state {path} is damaged ({error}); delete it to go on without anchors of earlier tasks"
            ) from error


def _anchors(rows: Any, pictures: bytes) -> Iterable[Anchor]:
    if not isinstance(rows, list) or len(rows) > MAX_ANCHORS:
        raise ValueError(f"anchors must be a list of at most {MAX_ANCHORS:,}")
    start = 0
    for row in rows:
        lengths = row["pictures"]
        texts = [row[name] for name in ("task", "id", "question", "answer")]
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("an anchor's texts must be text")
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
