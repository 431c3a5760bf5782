"""Joint LoRA: one adapter trained anew on everything seen so far. An upper bound that keeps all examples."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar

from inducekv.continual.methods.replay_lora import ReplayLora
from inducekv.continual.methods.trained import Weights
from inducekv.continual.methods.training import Recipe
from inducekv.training_state import MAX_ANCHORS

INTERIM_STEPS = 150
"""Steps at most after tasks that are not the stream's last. CHOICE: whole trainings would cost T times more."""


class JointLora(ReplayLora):
    """After the last task it is trained for all its epochs on all tasks; in between for `INTERIM_STEPS` at most.

    A reference: its training state is the whole stream.
    """

    name = "joint_lora"
    title = "Joint LoRA"
    reference: ClassVar[bool] = True
    capacity = MAX_ANCHORS

    def _start(self) -> Weights | None:
        return None

    def _recipe_for(self, examples: int) -> Recipe:
        if self.learned + 1 >= self._stream_length:
            return self._recipe
        steps = -(-examples // self._recipe.batch_size)
        return replace(self._recipe, epochs=min(self._recipe.epochs, max(1, INTERIM_STEPS // steps)))
