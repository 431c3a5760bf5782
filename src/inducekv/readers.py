"""Reading examples from the files and objects that people already have."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from PIL import Image

from inducekv.examples import Example, ImageSource, check_image, open_image

Answers = Literal["required", "optional"]
ImageOpener = Callable[[Any], ImageSource]

_HUMAN, _MODEL, _SYSTEM = ("human", "user"), ("gpt", "assistant", "model"), ("system",)
_KNOWN = {"id", "question_id", "image", "images", "question", "text", "answer", "conversations", "messages"}


def read_examples(source: Any, *, answers: Answers = "required", split: str = "train") -> list[Example]:
    """Reads examples from a file, a folder, a Hugging Face dataset, or rows in memory; the form is detected.

    - JSONL: a row a line with `question`, `answer` and `image` (or a list `images`; none is fine); an optional `id`.
    - LLaVA's JSON: a list of rows with `conversations` ([{from, value}]) and `image`; `<image>` marks are taken out.
    - Chat: rows with `messages` ([{role, content}], content text or parts; TRL's form) and `images`, or TRL's `prompt`
      and `completion` as messages.
    - A folder: its `<split>.jsonl` or `<split>.json`.
    - A `datasets.Dataset`, or any iterable of such rows or of `Example`.

    A conversation of several turns gives one example for each question with its answer, each with all the pictures of
    the row and without the turns before it; a system message goes before each question (CHOICE). Paths of pictures in a
    file are relative to it and may not leave its folder; pictures are checked by their header now and decoded on use.
    Repeated ids get a suffix (`:2`), so that an id names one example.

    Raises:
        ValueError: no examples, an unreadable row, a missing, broken or too large picture, or (with answers="required")
            a row without an answer; names the file and the line (or row).
        TypeError: `source` is none of these forms.
    """
    if answers not in ("required", "optional"):
        raise ValueError(f'answers must be "required" or "optional", got {answers!r}')
    if isinstance(source, (str, Path)):
        path = _data_file(Path(source), split)
        name, rows, opener = str(path), _rows_of_file(path), _opener_within(path.parent)
    elif isinstance(source, Mapping):
        raise TypeError(_which_split(source))
    elif isinstance(source, Iterable):
        name, rows, opener = type(source).__name__, _rows_in_memory(source), _open_trusted
    else:
        raise TypeError(f"cannot read examples from {type(source).__name__}; give a path, a dataset or a list of rows")

    examples: list[Example] = []
    for where, row in rows:
        try:
            found = [row] if isinstance(row, Example) else list(_examples_of_row(row, opener))
            for example in found:
                if answers == "required" and not (example.answer or "").strip():
                    raise ValueError("the row has no answer; every row to learn from needs one")
        except (ValueError, TypeError) as error:
            raise ValueError(f"{name}, {where}: {error}") from error
        examples += found
    if not examples:
        raise ValueError(f"{name}: holds no examples; expected at least one row")
    return _with_unique_ids(examples)


def _data_file(path: Path, split: str) -> Path:
    if path.is_dir():
        names = [f"{split}.jsonl", f"{split}.json"]
        for name in names:
            if (path / name).is_file():
                return path / name
        raise ValueError(f"{path}: a folder without {' or '.join(names)}; give the file itself")
    if not path.is_file():
        raise ValueError(f"{path}: no such file or folder")
    return path


def _which_split(source: Mapping[Any, Any]) -> str:
    if all(hasattr(value, "features") for value in source.values()) and source:
        return f"a dataset of splits; choose one of them: {', '.join(map(str, source))}"
    return "got one row (a mapping) where rows are expected; put it in a list"


def _rows_of_file(path: Path) -> Iterator[tuple[str, Any]]:
    try:
        with path.open(encoding="utf-8-sig") as file:
            start = file.read(4096).lstrip()[:1]
            file.seek(0)
            if start == "[":
                for number, row in enumerate(json.load(file), 1):
                    yield f"row {number}", row
                return
            for number, line in enumerate(file, 1):
                if line.strip():
                    try:
                        row = json.loads(line)
                    except json.JSONDecodeError as error:
                        raise ValueError(f"{path}, line {number}: not JSON ({error})") from error
                    yield f"line {number}", row
    except json.JSONDecodeError as error:
        raise ValueError(f"{path}: not JSON ({error})") from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: not a UTF-8 JSON or JSONL file ({error})") from error


def _rows_in_memory(source: Iterable[Any]) -> Iterator[tuple[str, Any]]:
    features = getattr(source, "features", None) or {}
    for column, feature in features.items():
        if type(feature).__name__ == "Image" and hasattr(source, "cast_column"):
            # bytes instead of decoded pictures: the size limits come before the decoder
            source = source.cast_column(column, type(feature)(decode=False))
    for number, row in enumerate(source, 1):
        yield f"row {number}", row


def _opener_within(folder: Path) -> ImageOpener:
    """Opens pictures by paths relative to `folder`, refusing any that leaves it (also through a symbolic link)."""
    root = folder.resolve()

    def opener(value: Any) -> ImageSource:
        if not isinstance(value, str) or not value or "\0" in value:
            raise ValueError(f"an image must be the path of a picture file, got {value!r}")
        path = (root / value).resolve()
        if not path.is_relative_to(root):
            raise ValueError(f"image {value}: leaves the folder of the data file; paths must stay inside {folder}")
        check_image(path)
        return path

    return opener


def _open_trusted(value: Any) -> ImageSource:
    """Checks a picture of a row that the caller's own code made: an object, a file's bytes, or a path anywhere."""
    if isinstance(value, Image.Image):
        return value
    if isinstance(value, Mapping):  # Hugging Face's {"bytes": ..., "path": ...}
        if value.get("bytes") is not None:
            open_image(value["bytes"], str(value.get("path") or "given as bytes"))
            return bytes(value["bytes"])
        value = value.get("path")
    if isinstance(value, bytes):
        open_image(value, "given as bytes")
        return value
    if isinstance(value, (str, Path)) and str(value):
        path = Path(value)
        check_image(path)
        return path
    raise TypeError(f"an image must be a picture, bytes or a path, got {type(value).__name__}")


def _examples_of_row(row: Any, opener: ImageOpener) -> Iterator[Example]:
    if not isinstance(row, Mapping):
        raise ValueError(f"a row must be an object with named fields, got {type(row).__name__}")
    metadata = {key: value for key, value in row.items() if key not in _KNOWN and not isinstance(value, Image.Image)}
    name = row.get("id", row.get("question_id"))
    base = Example("", id=None if name is None else str(name), metadata=metadata)
    turns = row.get("messages") or row.get("conversations")
    if turns is None and _is_messages(row.get("prompt")):
        turns = [*row["prompt"], *(row.get("completion") or [])]
        base = replace(base, metadata={})
    if turns is not None:
        yield from _examples_of_turns(turns, row, base, opener)
        return
    question = row.get("question", row.get("text"))
    if not isinstance(question, str) or not question.strip():
        raise ValueError(
            "the row has no question; expected `question`, `conversations` or `messages`, "
            f"got the fields {', '.join(map(repr, row)) or 'none'}"
        )
    images = tuple(map(opener, _listed(row)))
    yield replace(base, question=_unmarked(question), answer=_text_or_none(row.get("answer")), images=images)


def _examples_of_turns(turns: Any, row: Mapping[str, Any], base: Example, opener: ImageOpener) -> Iterator[Example]:
    if not _is_messages(turns):
        raise ValueError(f"a conversation must be a list of turns, got {turns!r:.80}")
    images = list(map(opener, _listed(row)))
    system: list[str] = []
    pairs: list[tuple[str, str | None]] = []
    for turn in turns:
        role = turn.get("role", turn.get("from"))
        text, inline = _content(turn.get("content", turn.get("value")))
        images += map(opener, inline)
        if role in _SYSTEM:
            system.append(text)
        elif role in _HUMAN:
            pairs.append((text, None))
        elif role in _MODEL:
            if not pairs or pairs[-1][1] is not None:
                raise ValueError("a conversation's answer comes without a question before it")
            pairs[-1] = (pairs[-1][0], text)
        else:
            raise ValueError(f"a turn's role must be one of {(*_HUMAN, *_MODEL, *_SYSTEM)}, got {role!r}")
    if not pairs:
        raise ValueError("the conversation asks no question; expected a turn of the user (or human)")
    for number, (question, answer) in enumerate(pairs, 1):
        name = base.id if base.id is None or len(pairs) == 1 else f"{base.id}#{number}"
        asked = "\n".join([*system, _unmarked(question)])
        yield replace(base, question=asked, answer=_text_or_none(answer), images=tuple(images), id=name)


def _is_messages(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and all(isinstance(turn, Mapping) for turn in value)


def _content(content: Any) -> tuple[str, list[Any]]:
    """The text of a turn and the pictures given inside it (a bare image part stands for one of the row's `images`)."""
    if isinstance(content, str):
        return content, []
    if not isinstance(content, (list, tuple)):
        raise ValueError(f"a turn's content must be text or a list of parts, got {content!r:.80}")
    texts, images = [], []
    for part in content:
        if isinstance(part, str):
            texts.append(part)
        elif isinstance(part, Mapping) and part.get("type") == "text":
            texts.append(part.get("text") or "")
        elif isinstance(part, Mapping) and part.get("type") == "image":
            given = next((part[key] for key in ("image", "path", "url") if part.get(key) is not None), None)
            images += [] if given is None else [given]
        else:
            raise ValueError(f"a part of a turn must be text or an image, got {part!r:.80}")
    return "\n".join(text for text in texts if text), images


def _listed(row: Mapping[str, Any]) -> list[Any]:
    value = row.get("images") if row.get("images") is not None else row.get("image")
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, (list, tuple)) else [value]


def _unmarked(text: str) -> str:
    """LLaVA's marks for where a picture goes are taken out: the processor's chat template puts pictures in."""
    return text.replace("<image>", "").strip()


def _text_or_none(value: Any) -> str | None:
    if value is None or isinstance(value, str):
        return value.strip() if value else value
    if isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"an answer must be text, got {type(value).__name__}: {value!r:.80}")


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
