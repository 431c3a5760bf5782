"""What every compared method offers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import ClassVar

from inducekv.continual.stream import Experience
from inducekv.examples import Example
from inducekv.progress import SILENT, Progress


class Method(ABC):
    """A way to learn a stream. `run` in runner.py calls `learn` once a task, then `answer` on the tasks so far."""

    name: ClassVar[str]
    title: ClassVar[str]
    learns: ClassVar[bool] = True
    """False when answers never change over the stream: they are then asked for once a task."""

    @abstractmethod
    def learn(self, experience: Experience, progress: Progress = SILENT) -> None:
        """Learns one task from its training examples; never looks at its test examples."""

    @abstractmethod
    def answer(self, examples: Sequence[Example], progress: Progress = SILENT) -> list[str]:
        """One answer for each example; the examples' own answers are not used."""

    @property
    @abstractmethod
    def deployed_bytes(self) -> int:
        """Bytes that must be kept beside the frozen backbone to answer."""
