"""Examples that a method keeps between tasks, and their bytes."""

from __future__ import annotations

from pathlib import Path

from inducekv.continual.ledger import texts_nbytes
from inducekv.training_state import TrainingState

EXAMPLES = 128
"""Examples a replay buffer holds: as many as InduceKV's anchors by default, drawn in the same way."""


def buffer_nbytes(buffer: TrainingState) -> int:
    """Bytes of the pictures' files and of the texts: Σ over examples (task + id + question + answer + pictures).

    Beside them its file holds only the framing of JSON (field names, punctuation, picture sizes) and its header.
    """
    texts = texts_nbytes(text for a in buffer.anchors for text in (a.task, a.id, a.question, a.answer))
    return texts + sum(len(picture) for anchor in buffer.anchors for picture in anchor.pictures)


def load_buffer(directory: Path, learned: int) -> TrainingState:
    """The buffer that `TrainingState.save` wrote; empty before the first task.

    Raises:
        ValueError: its file is missing or damaged.
    """
    if learned and not TrainingState.exists(directory):
        raise ValueError(f"the state in {directory} is incomplete: its examples are missing")
    return TrainingState.load(directory)
