"""InduceKV itself: one memory under one byte budget for the whole stream."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from inducekv.continual.methods.base import Method
from inducekv.continual.stream import Experience
from inducekv.examples import Example
from inducekv.learner import LearnReport
from inducekv.model import InducedModel
from inducekv.progress import SILENT, Progress


class InduceKV(Method):
    """Learns each task into the memory of `model` and answers with it."""

    name: ClassVar[str] = "inducekv"
    title: ClassVar[str] = "InduceKV"

    def __init__(self, model: InducedModel) -> None:
        self.model = model
        self.reports: list[LearnReport] = []

    def learn(self, experience: Experience, progress: Progress = SILENT) -> None:
        self.reports.append(self.model.learn(list(experience.train), task=experience.task, progress=progress))

    def answer(self, examples: Sequence[Example], progress: Progress = SILENT) -> list[str]:
        return [answer.text for answer in self.model.answer_all(list(examples), progress=progress)]

    @property
    def deployed_bytes(self) -> int:
        return self.model.memory.nbytes
