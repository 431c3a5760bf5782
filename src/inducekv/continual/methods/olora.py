"""O-LoRA: ranks of its own for every task, kept orthogonal to those of earlier tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from inducekv.continual.methods.sequential_lora import SequentialLora
from inducekv.continual.methods.trained import trained
from inducekv.continual.methods.training import Loss, Recipe, TrainingBatch


class OLora(SequentialLora):
    """Loss + strength · Σ over earlier tasks s of the sum of |A_t A_sᵀ| (Wang et al. 2023).

    One LoRA of rank T · r: task t trains only its own r rows of A and columns of B; what earlier tasks trained stays
    as it is and keeps acting. So the whole budget is shared out over a stream whose length is known.

    Raises:
        ValueError: more tasks come than the stream's length says.
    """

    name = "olora"
    title = "O-LoRA"
    recipe = Recipe(learning_rate=2e-2)
    strength = 0.05

    @classmethod
    def _multiple(cls, stream_length: int) -> int:
        return stream_length

    @property
    def _own(self) -> slice:
        """The present task's part of the rank."""
        share = self.size.rank // self._stream_length
        return slice(self.learned * share, (self.learned + 1) * share)

    def _begin(self, module: nn.Module, batches: Sequence[TrainingBatch]) -> None:
        if self.learned >= self._stream_length:
            raise ValueError(
                f"{self.name} shares its rank out over {self._stream_length} tasks, and one more came; "
                "give the stream's whole length when it is made"
            )
        for name, parameter in trained(module).items():
            mask = torch.zeros_like(parameter)
            if ".lora_A." in name:
                mask[self._own] = 1
            else:
                mask[:, self._own] = 1
            parameter.register_hook(mask.mul)

    def _loss(self, module: nn.Module, batches: Sequence[TrainingBatch]) -> Loss:
        plain, own = super()._loss(module, batches), self._own
        downs = [p for name, p in trained(module).items() if ".lora_A." in name]
        earlier = [p.detach()[: own.start].clone() for p in downs]

        def loss(batch: TrainingBatch) -> Tensor:
            overlaps = [(p[own] @ old.T).abs().sum() for p, old in zip(downs, earlier, strict=True)]
            return plain(batch) + self.strength * torch.stack(overlaps).sum()

        return loss

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "strength": self.strength}
