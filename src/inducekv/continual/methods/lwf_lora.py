"""LwF: sequential LoRA that keeps saying on new questions what it said before learning them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from inducekv.continual.methods.sequential_lora import SequentialLora
from inducekv.continual.methods.training import Loss, TrainingBatch, answer_logits


class LwfLora(SequentialLora):
    """Loss + strength · T² · KL(before ‖ now) at the new task's answer tokens, at temperature T (Li and Hoiem 2016).

    The teacher is the adapter itself as the task finds it: its logits are taken before training starts, so nothing is
    carried between tasks.
    """

    name = "lwf_lora"
    title = "LwF + LoRA"
    strength = 1.0
    temperature = 2.0

    def _loss(self, module: nn.Module, batches: Sequence[TrainingBatch]) -> Loss:
        if not self.learned:
            return super()._loss(module, batches)
        temperature = self.temperature
        with torch.no_grad():
            before = [log_softmax(answer_logits(self._backbone, b)[0] / temperature, -1) for b in batches]

        def loss(batch: TrainingBatch) -> Tensor:
            logits, targets = answer_logits(self._backbone, batch)
            now = log_softmax(logits / temperature, -1)
            apart = kl_div(now, before[batch.place], log_target=True, reduction="batchmean")
            return cross_entropy(logits, targets) + self.strength * temperature**2 * apart

        return loss

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "strength": self.strength, "temperature": self.temperature}
