"""A user's own stream: a folder with a folder for each task."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from inducekv.continual.stream import Experience, Stream
from inducekv.continual.streams.kinds import StreamKind, limited
from inducekv.readers import read_examples

SPLITS = ("train", "test", "validation")


@dataclass(frozen=True)
class FolderStream(StreamKind):
    """Task folders, each with `train` and `test` (and perhaps `validation`) as `.jsonl` or `.json`.

    The tasks come in the order of their folders' names (CHOICE): number them to choose another. Files are read by
    `read_examples`; folders without a training file are no tasks.
    """

    def load(self, seed: int = 0, root: Path | None = None, limit: int | None = None) -> Stream:
        if root is None or not root.is_dir():
            raise ValueError(f"stream {self.name} needs a folder of task folders as root, got {root}")
        folders = _task_folders(root)
        if not folders:
            raise ValueError(f"{root}: no task folders; expected folders with train.jsonl and test.jsonl")
        return Stream(tuple(_experience(folder, root, seed, limit) for folder in folders), self.name)

    def check(self, root: Path) -> list[str]:
        if not root.is_dir():
            return [f"{root}: no such folder"]
        problems = []
        folders = _task_folders(root)
        for folder in folders:
            try:
                _experience(folder, root, 0, None)
            except ValueError as error:
                problems.append(f"{folder.name}: {error}")
        return problems or ([] if folders else [f"{root}: no folder with a train.jsonl or train.json"])


def _has(folder: Path, split: str) -> bool:
    return any((folder / f"{split}.{ending}").is_file() for ending in ("jsonl", "json"))


def _task_folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and (_has(path, "train") or _has(path, "test")))


def _experience(folder: Path, root: Path, seed: int, limit: int | None) -> Experience:
    if not folder.resolve().is_relative_to(root.resolve()):
        raise ValueError(f"{folder}: leaves {root}; task folders must lie inside it")
    parts = {
        split: tuple(limited(read_examples(folder, split=split), limit, seed, f"{folder.name} {split}"))
        for split in SPLITS
        if split != "validation" or _has(folder, split)
    }
    return Experience(folder.name, parts["train"], parts["test"], parts.get("validation", ()))


FOLDER_STREAM = FolderStream("folder", "your own data: a folder of task folders", (), "any")
