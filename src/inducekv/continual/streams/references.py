"""Further right answers that a benchmark keeps in a file of their own."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from inducekv.continual.streams.files import json_file

Lookup = Callable[[int, Mapping[str, Any]], tuple[str, ...]]
"""From a test row's place in its file (from 0) and the row to its references; empty where there are none."""


def textvqa(path: Path) -> Lookup:
    """`TextVQA_0.5.1_val.json`: {data: [{question_id, image_id, question, answers}]}, ten answers each.

    CoIN's rows carry the picture's id as `question_id`, so the question's text is compared too.
    """
    entries = _listed(json_file(path), "data", path)
    by_question = {str(entry.get("question_id")): entry for entry in entries}
    by_text = {(str(entry.get("image_id")), _asked(entry.get("question"))): entry for entry in entries}

    def lookup(place: int, row: Mapping[str, Any]) -> tuple[str, ...]:
        name = str(row.get("question_id"))
        entry = by_text.get((name, _asked(row.get("text")))) or by_question.get(name) or {}
        return tuple(map(str, entry.get("answers") or ()))

    return lookup


def coco_captions(path: Path) -> Lookup:
    """COCO's caption form: {images: [{id, file_name}], annotations: [{image_id, caption}]}.

    A row belongs to the picture of its file's name, or where no such name is listed to the image_id of its place (from
    1) as in the published code. Since references go with their row, a shuffled file cannot mis-align them.
    """
    data = json_file(path)
    captions: dict[str, list[str]] = defaultdict(list)
    for annotation in _listed(data, "annotations", path):
        captions[str(annotation.get("image_id"))].append(str(annotation.get("caption")))
    names = {Path(str(image.get("file_name"))).name: str(image.get("id")) for image in _listed(data, "images", path)}

    def lookup(place: int, row: Mapping[str, Any]) -> tuple[str, ...]:
        return tuple(captions.get(names.get(Path(str(row.get("image"))).name, str(place + 1)), ()))

    return lookup


def _listed(data: Any, key: str, path: Path) -> list[Mapping[str, Any]]:
    items = data.get(key) if isinstance(data, Mapping) else None
    if not isinstance(items, list) or not all(isinstance(item, Mapping) for item in items):
        raise ValueError(f"{path}: expected an object with a list {key!r} of objects")
    return items


def _asked(text: Any) -> str:
    return str(text).replace("<image>", "").strip().split("\n")[0].strip().casefold()
