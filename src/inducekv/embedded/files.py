"""Drawn tasks as files, to try commands on: a folder for each with pictures, `train.jsonl` and `test.jsonl`."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image

from inducekv.embedded.tasks import drawn_tasks
from inducekv.examples import Example


def write_drawn_tasks(folder: Path, seed: int) -> list[Path]:
    """Draws the demo's tasks, but for the handwritten digits, and writes them; returns their folders.

    Args:
        folder: made if needed.
        seed: of the drawings and names.

    Raises:
        ValueError: the folder holds something already, or the seed is negative.
        OSError: it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already; name a folder that is new or empty")
    return [write_task(folder / name.replace(" ", "-"), train, test) for name, train, test in drawn_tasks(seed)]


def write_task(folder: Path, train: Sequence[Example], test: Sequence[Example]) -> Path:
    """Writes examples with one picture each as `train.jsonl`, `test.jsonl` and PNG files; returns the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for split, examples in (("train", train), ("test", test)):
        rows = "".join(f"{json.dumps(row)}\n" for row in _rows(folder, split, examples))
        (folder / f"{split}.jsonl").write_text(rows, encoding="utf-8")
    return folder


def _rows(folder: Path, split: str, examples: Iterable[Example]) -> Iterable[dict[str, str | None]]:
    for number, example in enumerate(examples):
        name = f"{split}-{number}"
        (picture,) = example.images
        if not isinstance(picture, Image.Image):
            raise TypeError(f"only drawings are written, got a picture as {type(picture).__name__}")
        picture.save(folder / f"{name}.png")
        yield {"id": name, "image": f"{name}.png", "question": example.question, "answer": example.answer}
