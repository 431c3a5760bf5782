"""The frozen backbone as it is."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from inducekv.backbone import Backbone
from inducekv.continual.methods.base import Method
from inducekv.continual.stream import Experience
from inducekv.examples import Example
from inducekv.progress import SILENT, Progress


class ZeroShot(Method):
    """Answers without having learned anything: the row that tells what the tasks are worth."""

    name = "zero_shot"
    title = "Zero-shot"
    settles: ClassVar[bool] = True
    reference: ClassVar[bool] = True
    deployed_bytes = 0

    def __init__(self, backbone: Backbone, max_new_tokens: int = 32) -> None:
        self._backbone = backbone
        self._max_new_tokens = max_new_tokens

    def learn(self, experience: Experience, progress: Progress = SILENT) -> None:
        pass

    def answer(self, examples: Sequence[Example], progress: Progress = SILENT, task: str | None = None) -> list[str]:
        return self._backbone.generate(
            examples, max_new_tokens=self._max_new_tokens, batch_size=self.batch_size, progress=progress
        )
