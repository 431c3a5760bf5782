"""What the fields of a row say: which are missing, which hold pictures, and how many pictures its texts ask for."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np
from PIL import Image

from inducekv.error_text import shown

MARK = "<image>"
"""LLaVA's mark for where a picture goes."""

_NUMBERED = re.compile(r"<\|?image[ _]?(\d{1,4})\|?>", re.IGNORECASE)
_FOREIGN = re.compile(r"<\|image\|>|<image_placeholder>|<imagehere>", re.IGNORECASE)
_WORD = re.compile(r"(?:image|img|picture|pic|photo|video|audio)s?", re.IGNORECASE)
_WORDS = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_ALSO = {"path", "paths", "file", "files", "filename", "filenames", "url", "urls", "uri", "base", "b", "bytes", "data"}
"""Words that may follow in the name of a column that holds pictures (`base` and `b` are of base64)."""
_ENDING = re.compile(
    r"\.(?:png|jpe?g|webp|gif|bmp|tiff?|avif|jp2|ppm|pgm|svg|heic|eps|mp4|webm|wav|mp3)$", re.IGNORECASE
)


def missing(value: Any) -> bool:
    """Whether a value stands for none: None, NaN, pandas' NA or NaT."""
    if value is None or type(value).__name__ in ("NAType", "NaTType"):
        return True
    return isinstance(value, float | np.floating | np.datetime64) and bool(value != value)


def given(row: Mapping[Any, Any]) -> dict[Any, Any]:
    """The fields of a row that are not missing."""
    return {key: value for key, value in row.items() if not missing(value)}


def one_of(row: Mapping[Any, Any], *names: str) -> str | None:
    """Which of these fields the row has; None: none.

    Raises:
        ValueError: it has several that differ.
    """
    found = [name for name in names if name in row]
    for other in found[1:]:
        if row[other] is not row[found[0]] and row[other] != row[found[0]]:
            raise ValueError(f"the row has both `{found[0]}` and `{other}`; only one of them can be read")
    return found[0] if found else None


def check_asked(texts: Iterable[str], parts: int, column: int, inline: int) -> None:
    """Compare the pictures that a row asks for with those that it has.

    Args:
        texts: what is asked, marks still in.
        parts: image parts without a picture of their own.
        column: pictures of the row.
        inline: pictures inside the turns.

    Raises:
        ValueError: there are marks and parts, but not as many as pictures in the row; a mark is numbered above the
            pictures; a text has another model's mark for a picture, and there is none.
    """
    whole = "\n".join(texts)
    marks = whole.count(MARK)
    if marks + parts and marks + parts != column:
        raise ValueError(
            f"the row asks for {marks + parts} pictures ({marks} {MARK} marks, {parts} image parts) and has {column} "
            "in `image` or `images`; these must be as many"
        )
    numbers = [int(number) for number in _NUMBERED.findall(whole)]
    if numbers and max(numbers) > column + inline:
        raise ValueError(f"the row asks for picture {max(numbers)} and has {column + inline}")
    if not column + inline and (other := _FOREIGN.search(whole)):
        raise ValueError(f"the row asks for a picture ({other.group()}) and has none")


def unmarked(text: str, before: int = 0) -> str:
    """The text without its marks: the processor's chat template puts pictures in, before the question.

    A mark with words before it in its line and words after it stands for a word: it becomes "picture 2", numbered over
    the row, so that the question still says which (CHOICE). Any other is taken out.

    Args:
        text: a turn, or a question.
        before: marks in the turns before it.
    """
    pieces = text.split(MARK)
    made = pieces[0]
    for place, piece in enumerate(pieces[1:], 1):
        line = "".join(pieces[:place]).rpartition("\n")[2]
        inside = line.strip() and "".join(pieces[place:]).strip()
        made += f"picture {before + place}{piece}" if inside else piece
    return made.strip()


def check_unread(unread: Mapping[Any, Any], read: Sequence[Any]) -> None:
    """Look for pictures in the fields of a row that are not read.

    Args:
        unread: these fields.
        read: the row's pictures as they were given; a field that only names the file of one of them is fine.

    Raises:
        ValueError: a field holds a picture, or names one.
    """
    known = {name for value in read if (name := _file_name(value))}
    for key, value in unread.items():
        if _holds_picture(str(key), value, known, bool(read)):
            raise ValueError(
                f"the column {shown(key)} looks like pictures ({shown(value, 40)}) and is not read; put pictures into "
                "`image` or `images`, or leave the column out"
            )


def _file_name(value: Any) -> str | None:
    if isinstance(value, Mapping):
        value = value.get("path")
    return PurePath(str(value)).name if isinstance(value, str | PurePath) else None


def _holds_picture(key: str, value: Any, known: set[str], some_read: bool) -> bool:
    if isinstance(value, list | tuple):
        return any(_holds_picture(key, each, known, some_read) for each in value)
    if isinstance(value, Image.Image | bytes):
        return True
    if isinstance(value, Mapping):
        return isinstance(value.get("bytes"), bytes) or (
            {*value} == {"bytes", "path"} and _holds_picture(key, value["path"], known, some_read)
        )
    if not isinstance(value, str | PurePath) or not str(value).strip() or _file_name(value) in known:
        return False
    if str(value)[:11].lower() == "data:image/":
        return True
    words = _WORDS.findall(key)
    named = [word for word in words if _WORD.fullmatch(word)]
    if named and all(word in named or word.lower() in _ALSO for word in words):
        return True
    return _ENDING.search(str(value)) is not None and (bool(named) or not some_read)
