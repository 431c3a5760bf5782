"""Published benchmarks as tables: which files each task has, how their rows are read and how answers are graded."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from inducekv.continual.graders import graders_named
from inducekv.continual.stream import Experience, Stream
from inducekv.continual.streams.files import first_existing, json_rows
from inducekv.continual.streams.kinds import StreamKind, limited
from inducekv.continual.streams.references import Lookup
from inducekv.continual.streams.rows import Row, RowReader, every_row, llava
from inducekv.error_text import message, shown_name
from inducekv.examples import Example
from inducekv.readers import read_examples
from inducekv.row_fields import given

SHOWN_PROBLEMS = 3
"""Malformed rows that `check` names for each file before it only counts them. CHOICE."""


@dataclass(frozen=True)
class PublishedTask:
    """One task of a benchmark. Paths are relative to the root; of several, the first that is there counts.

    Attributes:
        grader: a name for `graders_named`.
        train, test, validation: its files; without `validation` there is none.
        images, test_images: folders that the rows' picture paths are relative to; the second where it differs.
        row: reads one row of the files.
        keeps: whether a row belongs to the benchmark.
        references, read_references: a file of further right answers to the test questions, and its reader.
    """

    name: str
    grader: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    images: tuple[str, ...]
    test_images: tuple[str, ...] = ()
    validation: tuple[str, ...] = ()
    row: RowReader = llava
    keeps: Callable[[Row], bool] = every_row
    references: tuple[str, ...] = ()
    read_references: Callable[[Path], Lookup] | None = None

    def parts(self) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
        """For each split, its files and its folders of pictures."""
        parts = {"train": (self.train, self.images), "test": (self.test, self.test_images or self.images)}
        return parts | ({"validation": (self.validation, self.images)} if self.validation else {})


@dataclass(frozen=True)
class PublishedStream(StreamKind):
    """A benchmark read from its download, in the order of `table`."""

    table: tuple[PublishedTask, ...] = ()

    def load(self, seed: int = 0, root: Path | None = None, limit: int | None = None) -> Stream:
        if root is None or not root.is_dir():
            raise ValueError(f"stream {self.name} needs the folder of its download as root, got {root}")
        return Stream(tuple(_experience(task, root, seed, limit) for task in self.table), self.name)

    def check(self, root: Path) -> list[str]:
        if not root.is_dir():
            return [f"{root}: no such folder"]
        problems = []
        for task in self.table:
            for split, (files, folders) in task.parts().items():
                problems += [f"{task.name}, {split}: {problem}" for problem in _problems(task, root, files, folders)]
            problems += [f"{task.name}, references: {problem}" for problem in _reference_problems(task, root)]
        return problems


def _experience(task: PublishedTask, root: Path, seed: int, limit: int | None) -> Experience:
    parts: dict[str, tuple[Example, ...]] = {}
    for split, (files, folders) in task.parts().items():
        path, images = first_existing(root, files), first_existing(root, folders)
        if path is None and split == "validation":
            continue
        if path is None or images is None:
            missing = files if path is None else folders
            raise ValueError(f"task {task.name}: none of {', '.join(missing)} is in {root}")
        lookup = None
        if split == "test" and task.read_references is not None:
            given = first_existing(root, task.references)
            if given is None:
                raise ValueError(f"task {task.name}: none of {', '.join(task.references)} is in {root}")
            lookup = task.read_references(given)
        kept = [(place, row) for place, row in enumerate(json_rows(path)) if task.keeps(row)]
        if not kept:
            raise ValueError(f"{path}: none of its rows belongs to the benchmark")
        rows = limited(kept, limit, seed, f"{task.name} {split}")
        parts[split] = tuple(
            example for place, row in rows for example in _examples(task, path, place, row, images, lookup)
        )
    grader, faithful = graders_named(task.grader)
    return Experience(
        task.name,
        parts["train"],
        parts["test"],
        parts.get("validation", ()),
        grader=grader,
        faithful_grader=faithful,
    )


def _examples(
    task: PublishedTask, path: Path, place: int, row: Any, images: Path, lookup: Lookup | None = None
) -> list[Example]:
    """A row's examples, its pictures checked by their headers.

    Raises:
        ValueError: the row is malformed; names the file and the row.
    """
    try:
        plain = task.row(given(row), images)
        answers = plain.pop("answers", None)
        references = lookup(place, row) if lookup is not None else tuple(map(str, answers or ()))
        origin = f"{path}, row {place + 1}"
        return [replace(example, references=references, origin=origin) for example in read_examples([plain])]
    except (ValueError, TypeError) as error:
        said = str(error).removeprefix("list, row 1: ")
        raise ValueError(message(f"{shown_name(path)}, row {place + 1}: {said}")) from error


def _reference_problems(task: PublishedTask, root: Path) -> list[str]:
    if task.read_references is None:
        return []
    try:
        given = first_existing(root, task.references)
        if given is None:
            return [f"none of {', '.join(task.references)} is there"]
        task.read_references(given)
    except ValueError as error:
        return [str(error)]
    return []


def _problems(task: PublishedTask, root: Path, files: tuple[str, ...], folders: tuple[str, ...]) -> list[str]:
    try:
        path, images = first_existing(root, files), first_existing(root, folders)
        if path is None or images is None:
            missing = [each for each, found in ((files, path), (folders, images)) if found is None]
            return [f"none of {', '.join(alternatives)} is there" for alternatives in missing]
        rows = [(place, row) for place, row in enumerate(json_rows(path)) if task.keeps(row)]
    except ValueError as error:
        return [str(error)]

    def bad() -> Iterator[str]:
        for place, row in rows:
            try:
                _examples(task, path, place, row, images)
            except ValueError as error:
                yield str(error)

    if not rows:
        return [f"{path}: none of its rows belongs to the benchmark"]
    found = bad()
    shown = list(islice(found, SHOWN_PROBLEMS))
    more = sum(1 for _ in found)
    return shown + ([f"{path}: {more} more such rows of {len(rows)}"] if more else [])
