"""The small columns of a memory file that nobody vouches for: checked in bulk, without an object for each entry."""

import json
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from inducekv.entry import NAME_LIMIT, TEXT_LIMIT, check_name
from inducekv.entry_table import TASK, TOKENS, EntryTable
from inducekv.tensor_file import TensorFile

ROWS = 4096
"""Entries that are checked at once."""


def read_table(file: TensorFile, numbers: NDArray[np.int32], tasks: tuple[str, ...]) -> EntryTable:
    """Check the table of entries and all texts of a file.

    Args:
        file: with its header read and its shapes checked.
        numbers: `[entries, 4]`, none negative.
        tasks: names of the tasks.

    Raises:
        ValueError: an entry without tokens or of no task, or text that is not what `Entry.text` writes.
    """
    for task in tasks:
        check_name("task name", task)
    if len(set(tasks)) < len(tasks):
        raise ValueError("a task is named twice")
    if len(numbers) and not int(numbers[:, TOKENS].min()):
        raise ValueError("every entry needs at least one token")
    if len(numbers) and int(numbers[:, TASK].max()) >= len(tasks):
        raise ValueError(f"an entry is of task {int(numbers[:, TASK].max())}, there are {len(tasks)}")
    sizes, hashes = [], []
    for lines in _lines(file):
        sizes.append(np.array([len(line) + 1 for line in lines], dtype=np.int32))
        hashes.append(np.array([hash(name) for name in _checked_ids(lines)], dtype=np.int64))
    text_nbytes = np.concatenate([np.empty(0, dtype=np.int32), *sizes])
    if len(text_nbytes) != len(numbers):
        raise ValueError(f"{len(text_nbytes)} texts for {len(numbers)} entries")
    table = EntryTable(numbers, text_nbytes, np.concatenate([np.empty(0, dtype=np.int64), *hashes]), tasks)
    if table.take(np.arange(len(table), dtype=np.int64)).tasks != tasks:
        raise ValueError("the tasks do not match: they must be named in the order of their first entry")
    return table


def _lines(file: TensorFile) -> Iterator[list[bytes]]:
    """Lines of the text without their ends, some thousands at once."""
    rest = b""
    for chunk in file.chunks("text", 0, file.blocks["text"].shape[0]):
        *lines, rest = (rest + chunk.numpy().tobytes()).split(b"\n")
        for start in range(0, len(lines), ROWS):
            yield lines[start : start + ROWS]
    if rest:
        raise ValueError("the last text does not end")


def _checked_ids(lines: list[bytes]) -> list[str]:
    """Ids of some entries, whose text must be, byte for byte, what `Entry.text` makes of it.

    All lines are parsed as one JSON list. That no line holds a part of another's row is sure because each begins a
    list, no text can hold the line end between them, and there are as many rows as lines.
    """
    joined = b",\n".join(lines)
    if not all(line.startswith(b'["') and line.endswith(b'"]') for line in lines):
        raise ValueError("a text is not a list of id, question and answer")
    try:
        rows = json.loads("[" + joined.decode() + "]")
    except RecursionError as error:
        raise ValueError("a text is nested too deeply") from error
    if len(rows) != len(lines) or not all(type(row) is list and len(row) == 3 for row in rows):
        raise ValueError("a text is not a list of id, question and answer")
    if not all(type(part) is str for row in rows for part in row):
        raise ValueError("id, question and answer must be text")
    again = json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode()
    if again != b"[" + joined.replace(b",\n", b",") + b"]":
        raise ValueError("a text is not written as this library writes it")
    ids = [row[0] for row in rows]
    if not all(map(str.strip, ids)) or not "".join(ids).isprintable() or max(len(x.encode()) for x in ids) > NAME_LIMIT:
        raise ValueError(f"entry ids must be 1 to {NAME_LIMIT} bytes of printable text")
    for line, (_, question, answer) in zip(lines, rows, strict=True):
        if len(line) > TEXT_LIMIT and len((question + answer).encode()) > TEXT_LIMIT:
            raise ValueError(f"question and answer of an entry are longer than {TEXT_LIMIT} bytes")
    return ids
