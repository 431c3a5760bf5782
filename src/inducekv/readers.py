"""Reading examples from the files and objects that people already have."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from inducekv.error_text import message, shown, shown_name
from inducekv.examples import Example
from inducekv.picture_openers import ImageOpener, open_trusted, opener_within
from inducekv.row_fields import MARK, check_asked, check_unread, given, missing, one_of, unmarked

Answers = Literal["required", "optional"]

_HUMAN, _MODEL, _SYSTEM = ("human", "user"), ("gpt", "assistant", "model"), ("system",)


def read_examples(source: Any, *, answers: Answers = "required", split: str = "train") -> list[Example]:
    """Reads examples from a file, a folder, a Hugging Face dataset, or rows in memory; the form is detected.

    - JSONL: a row a line with `question`, `answer` and `image` (or a list `images`; none is fine); an optional `id`.
    - LLaVA's JSON: a list of rows with `conversations` ([{from, value}]) and `image`; `<image>` marks are taken out,
      or become "picture 1" in the middle of a sentence.
    - Chat: rows with `messages` ([{role, content}], content text or parts; TRL's form) and `images`, or TRL's `prompt`
      and `completion` as messages.
    - A folder: its `<split>.jsonl` or `<split>.json`.
    - A `datasets.Dataset`, or any iterable of such rows or of `Example`.

    A conversation of several turns gives one example for each question with its answer, each with all the pictures of
    the row and without the turns before it; a system message goes before each question (CHOICE). Paths of pictures in a
    file are relative to it and may not leave its folder; a `data:` URI is a picture too, nothing is fetched from an
    address. Pictures are checked by their header now and decoded on use. None, NaN and pandas' NA are missing values.
    Repeated ids get a suffix (`:2`), so that an id names one example.

    Raises:
        ValueError: no examples, an unreadable row, a missing, broken or too large picture, a row that asks for other
            pictures than it has (`<image>` marks, image parts) or has some in a column that is not read, or (with
            answers="required") a row without an answer; names the file and the line (or row).
        TypeError: `source` is none of these forms.
    """
    if answers not in ("required", "optional"):
        raise ValueError(f'answers must be "required" or "optional", got {answers!r}')
    if isinstance(source, (str, Path)):
        path = _data_file(Path(source), split)
        name, rows, opener = str(path), _rows_of_file(path), opener_within(path.parent)
    elif isinstance(source, Mapping):
        raise TypeError(_which_split(source))
    elif isinstance(source, Iterable):
        name, rows, opener = type(source).__name__, _rows_in_memory(source), open_trusted
    else:
        raise TypeError(f"cannot read examples from {type(source).__name__}; give a path, a dataset or a list of rows")

    examples: list[Example] = []
    for where, row in rows:
        try:
            origin = f"{name}, {where}"
            found = [row] if isinstance(row, Example) else list(_examples_of_row(row, opener, origin))
            for example in found:
                if answers == "required" and not (example.answer or "").strip():
                    raise ValueError("the row has no answer; every row to learn from needs one")
        except (ValueError, TypeError, OSError, RecursionError) as error:
            raise ValueError(message(f"{shown_name(name)}, {where}: {error}")) from error
        examples += found
    if not examples:
        raise ValueError(f"{shown_name(name)}: holds no examples; expected at least one row")
    return _with_unique_ids(examples)


def _data_file(path: Path, split: str) -> Path:
    try:
        folder, file = path.is_dir(), path.is_file()
    except (OSError, ValueError) as error:  # too long a name, a folder that may not be entered
        raise ValueError(f"{shown_name(path)}: {getattr(error, 'strerror', None) or error}") from error
    if folder:
        names = [f"{split}.jsonl", f"{split}.json"]
        for name in names:
            if (path / name).is_file():
                return path / name
        raise ValueError(f"{shown_name(path)}: a folder without {' or '.join(map(shown_name, names))}; give the file")
    if not file:
        raise ValueError(f"{shown_name(path)}: no such file or folder")
    return path


def _which_split(source: Mapping[Any, Any]) -> str:
    if all(hasattr(value, "features") for value in source.values()) and source:
        return f"a dataset of splits; choose one of them: {shown_name(', '.join(map(str, source)))}"
    return "got one row (a mapping) where rows are expected; put it in a list"


def _rows_of_file(path: Path) -> Iterator[tuple[str, Any]]:
    name = shown_name(path)
    try:
        with path.open(encoding="utf-8-sig", newline="\n") as file:  # no other character ends a line of JSON Lines
            start = file.read(4096).lstrip()[:1]
            file.seek(0)
            if start == "[":
                for number, row in enumerate(_parsed(file.read()), 1):
                    yield f"row {number}", row
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        row = _parsed(line)
                    except (ValueError, RecursionError) as error:
                        raise ValueError(message(f"{name}, line {number}: not JSON ({error})")) from error
                    yield f"line {number}", row
    except UnicodeDecodeError as error:
        raise ValueError(f"{name}: not a UTF-8 JSON or JSONL file ({error})") from error
    except (ValueError, RecursionError) as error:
        if str(error).startswith(name):
            raise
        raise ValueError(message(f"{name}: not JSON ({error})")) from error


def _parsed(text: str) -> Any:
    return json.loads(text, object_pairs_hook=_fields)


def _fields(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) < len(pairs):
        names = [name for name, _ in pairs]
        raise ValueError(f"the field {shown(max(names, key=names.count))} is there twice")
    return fields


def _rows_in_memory(source: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    features = getattr(source, "features", None) or {}
    for column, feature in features.items():
        if hasattr(source, "cast_column") and (undecoded := _undecoded(feature)) is not None:
            source = source.cast_column(column, undecoded)
    for number, row in enumerate(source, 1):
        yield f"row {number}", row


def _undecoded(feature: Any) -> Any:
    """The feature of `datasets` that gives files' bytes for pictures: the limits come before the decoder.

    None where the column has no pictures.
    """
    if type(feature).__name__ == "Image":
        return type(feature)(decode=False)
    if isinstance(feature, list) and len(feature) == 1 and (inner := _undecoded(feature[0])) is not None:
        return [inner]
    if hasattr(feature, "feature") and (inner := _undecoded(feature.feature)) is not None:
        return type(feature)(inner)
    return None


def _examples_of_row(row: Any, opener: ImageOpener, origin: str) -> Iterator[Example]:
    if not isinstance(row, Mapping):
        raise ValueError(f"a row must be an object with named fields, got {type(row).__name__}")
    row = given(row)
    columns = {key: listed for key in ("images", "image") if (listed := _listed(row.get(key)))}
    column = columns.get(one_of(columns, "images", "image") or "", [])
    read = {"id", "question_id", "image", "images"}
    turns, texts = _turns_of(row)
    read |= {*texts}
    unread = {key: value for key, value in row.items() if key not in read}
    check_unread(unread, column)
    name = row.get("id", row.get("question_id"))
    if isinstance(name, Mapping | list | tuple | bytes):
        raise ValueError(f"an id must be text or a number, got {shown(name)}")
    base = Example("", id=None if name is None else str(name), metadata=unread, origin=origin)
    if turns is not None:
        yield from _examples_of_turns(turns, column, base, opener)
        return
    question = row.get(texts[0])
    if not isinstance(question, str) or not question.strip():
        raise ValueError(
            "the row has no question; expected `question`, `conversations` or `messages`, "
            f"got the fields {', '.join(map(shown, row)) or 'none'}"
        )
    check_asked([question], 0, len(column), 0)
    images = tuple(map(opener, column))
    yield replace(base, question=unmarked(question), answer=_text_or_none(row.get("answer")), images=images)


def _turns_of(row: Mapping[Any, Any]) -> tuple[Any, list[str]]:
    """The turns of a row that is a conversation, else None; and the fields that the texts are read from."""
    form = one_of({key: row[key] for key in ("messages", "conversations") if row.get(key)}, "messages", "conversations")
    if form is not None:
        return row[form], [form]
    if _is_messages(row.get("prompt")):
        return [*row["prompt"], *(row.get("completion") or [])], ["prompt", "completion"]
    return None, ["question" if "question" in row else "text", "answer"]


def _examples_of_turns(turns: Any, column: list[Any], base: Example, opener: ImageOpener) -> Iterator[Example]:
    if not _is_messages(turns):
        raise ValueError(f"a conversation must be a list of turns, got {shown(turns)}")
    system: list[str] = []
    pairs: list[tuple[str, str | None]] = []
    inline: list[Any] = []
    bare = 0
    for turn in map(given, turns):
        role = turn.get("role", turn.get("from"))
        text, images, asked = _content(turn.get("content", turn.get("value")))
        inline += images
        bare += asked
        if role in _SYSTEM:
            system.append(text)
        elif role in _HUMAN:
            pairs.append((text, None))
        elif role in _MODEL:
            if not pairs or pairs[-1][1] is not None:
                raise ValueError("a conversation's answer comes without a question before it")
            pairs[-1] = (pairs[-1][0], text)
        else:
            raise ValueError(f"a turn's role must be one of {(*_HUMAN, *_MODEL, *_SYSTEM)}, got {shown(role)}")
    if not pairs:
        raise ValueError("the conversation asks no question; expected a turn of the user (or human)")
    check_asked([*system, *(question for question, _ in pairs)], bare, len(column), len(inline))
    pictures = tuple(map(opener, [*column, *inline]))
    marks = sum(text.count(MARK) for text in system)
    for number, (question, answer) in enumerate(pairs, 1):
        name = base.id if base.id is None or len(pairs) == 1 else f"{base.id}#{number}"
        asking = "\n".join([*map(unmarked, system), unmarked(question, marks)])
        marks += question.count(MARK)
        yield replace(base, question=asking, answer=_text_or_none(answer), images=pictures, id=name)


def _is_messages(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(turn, Mapping) for turn in value)


def _content(content: Any) -> tuple[str, list[Any], int]:
    """The text of a turn, the pictures given inside it, and how many image parts stand for one of the row's."""
    if isinstance(content, str):
        return content, [], 0
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"a turn's content must be text or a list of parts, got {shown(content)}")
    texts, images, bare = [], [], 0
    for part in content:
        fields = given(part) if isinstance(part, Mapping) else {"type": "text", "text": part}
        kind = fields.pop("type", None)
        if kind == "text" and isinstance(fields.get("text", ""), str):
            texts.append(fields.pop("text", ""))
        elif kind == "image":
            key = next((key for key in ("image", "path", "url") if fields.get(key)), None)
            images += [] if key is None else [fields.pop(key)]
            bare += key is None
        elif kind in ("image_url", "input_image"):
            images.append(_in_its_address(fields.pop("image_url", None)))
        else:
            raise ValueError(f"a part of a turn must be text or an image, got {shown(part)}")
        check_unread(fields, images)
        if kind != "text" and any(isinstance(value, str | Mapping) and value for value in fields.values()):
            raise ValueError(f"an image part gives its picture as `image` or `path`, got {shown(part)}")
    return "\n".join(text for text in texts if text), images, bare


def _in_its_address(address: Any) -> str:
    """The `data:` URI of an `image_url` part, which can name no file."""
    address = address.get("url") if isinstance(address, Mapping) else address
    if not isinstance(address, str) or address[:5].lower() != "data:":
        raise ValueError(
            f"an image_url must be a data: URI, got {shown(address, 60)}; nothing is fetched, and a file is named by "
            '{"type": "image", "image": "a.png"}'
        )
    return address


def _listed(value: Any) -> list[Any]:
    values = value if isinstance(value, (list, tuple)) else [value]
    return [each for each in values if not missing(each) and not (isinstance(each, str) and not each)]


def _text_or_none(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value.strip() if value else value
    if isinstance(value, np.generic):
        value = value.item()
    if isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) != float("inf"):
        return str(value)
    raise ValueError(f"an answer must be text, got {type(value).__name__}: {shown(value)}")


def _with_unique_ids(examples: list[Example]) -> list[Example]:
    seen: dict[str, int] = {}
    unique = []
    for example in examples:
        if example.id is not None:
            seen[example.id] = count = seen.get(example.id, 0) + 1
            if count > 1:
                example = replace(example, id=f"{example.id}:{count}")
        unique.append(example)
    return unique
