"""What a row of each published schema says: one function a schema, all giving rows that `read_examples` reads.

A function gets a row and the folder of its pictures, and returns the row with `id`, `question` (or `conversations`),
`answer` and `images` as paths, plus whatever a grader needs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from inducekv.continual.streams.files import within
from inducekv.error_text import shown
from inducekv.row_fields import missing, one_of

Row = Mapping[str, Any]
RowReader = Callable[[Row, Path], dict[str, Any]]

SHORT = "\nAnswer the question using a single word or phrase."
"""LLaVA's prompt for short answers, put behind questions of files that hold bare ones. CHOICE."""


def llava(row: Row, images: Path) -> dict[str, Any]:
    """CoIN, UCIT, MLLM-CL, CL-MoE, LiIT: {id, image, conversations} to learn, {question_id, text, image, answer} to
    ask."""
    value = row.get(one_of(row, "image", "images") or "image")
    listed = value if isinstance(value, list) else [] if missing(value) or value == "" else [value]
    kept = {key: item for key, item in row.items() if key not in ("image", "images")}
    return {**kept, "images": [within(images, each) for each in listed]}


def vqacl(row: Row, images: Path) -> dict[str, Any]:
    """VQACL: {question_id, img_id, sent, label, answers}; pictures by COCO's names in `train2014` and `val2014`."""
    name = row.get("img_id")
    parts = name.split("_") if isinstance(name, str) else []
    if len(parts) != 3 or parts[0] != "COCO":
        raise ValueError(f"img_id must be a name such as COCO_train2014_000000000009, got {shown(name)}")
    label = row.get("label") or {}
    if not isinstance(label, Mapping):
        raise ValueError(f"label must map answers to scores, got {shown(label)}")
    people = [each.get("answer") if isinstance(each, Mapping) else each for each in row.get("answers") or []]
    said = [str(answer) for answer in people if not missing(answer)]
    best = max(label, key=lambda answer: (label[answer], answer)) if label else None
    question = row.get("sent") or row.get("question")
    return {
        "id": row.get("question_id"),
        "question": None if question is None else f"{question}{SHORT}",
        "answer": best or (Counter(said).most_common(1)[0][0] if said else None),
        "images": [within(images, f"{parts[1]}/{name}.jpg")],
        "label": dict(label),
        "answers": said,
    }


def _medical(row: Row, images: Path, name: Any) -> dict[str, Any]:
    path = within(images, name)
    if not path.suffix:
        path = within(images, f"{name}.jpg")
    return {
        "id": row.get("qid"),
        "question": None if row.get("question") is None else f"{row['question']}{SHORT}",
        "answer": row.get("answer"),
        "images": [path],
        "answer_type": row.get("answer_type", ""),
    }


def vqa_rad(row: Row, images: Path) -> dict[str, Any]:
    """VQA-RAD and PathVQA: {image_name or image, question, answer, answer_type}."""
    return _medical(row, images, row.get("image_name") or row.get("image"))


def slake(row: Row, images: Path) -> dict[str, Any]:
    """SLAKE: {img_name, question, answer, q_lang, answer_type, qid}."""
    return _medical(row, images, row.get("img_name"))


def every_row(row: Row) -> bool:
    return True


def in_english(row: Row) -> bool:
    """SLAKE is bilingual; papers use its English half."""
    return row.get("q_lang", "en") == "en"
