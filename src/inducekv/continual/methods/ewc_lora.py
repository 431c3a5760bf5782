"""EWC: sequential LoRA whose weights are held where earlier tasks need them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inducekv.continual.ledger import SINGLE, Ledger, adapter_nbytes
from inducekv.continual.methods.sequential_lora import SequentialLora
from inducekv.continual.methods.storage import State, check_like
from inducekv.continual.methods.trained import trained
from inducekv.continual.methods.training import Loss, TrainingBatch
from inducekv.continual.stream import Experience


class EwcLora(SequentialLora):
    """Loss + strength / 2 · Σ F (θ - θ*)² (Kirkpatrick et al. 2017), in the online form (Schwarz et al. 2018).

    F, the sum over tasks of the mean squared gradient of a batch's loss, is the training state (float32); θ* is the
    adapter as the last task left it. CHOICE: no decay of F, and a strength that looks large
    because F is small: its gradients are taken where the loss is near 0.
    """

    name = "ewc_lora"
    title = "EWC + LoRA"
    strength = 1e5

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.fisher: dict[str, Tensor] = {}

    def _loss(self, module: nn.Module, batches: Sequence[TrainingBatch]) -> Loss:
        plain = super()._loss(module, batches)
        if not self.fisher:
            return plain
        parameters = trained(module)
        held = {name: p.detach().clone() for name, p in parameters.items()}
        fisher = {name: self.fisher[name].to(p) for name, p in parameters.items()}

        def loss(batch: TrainingBatch) -> Tensor:
            moved = [(fisher[name] * (p - held[name]) ** 2).sum() for name, p in parameters.items()]
            return plain(batch) + self.strength / 2 * torch.stack(moved).sum()

        return loss

    def _after_task(self, module: nn.Module, batches: Sequence[TrainingBatch], experience: Experience) -> None:
        parameters, plain = trained(module), super()._loss(module, batches)
        fisher = dict(self.fisher)
        for batch in batches:
            with torch.enable_grad():
                gradients = torch.autograd.grad(plain(batch), list(parameters.values()))
            for name, gradient in zip(parameters, gradients, strict=True):
                squared = gradient.detach().float().cpu() ** 2 / len(batches)
                fisher[name] = fisher[name] + squared if name in fisher else squared
        self.fisher = fisher

    def _training(self) -> Mapping[str, Tensor]:
        return self.fisher

    def ledger(self) -> Ledger:
        """As LoRA; training state 4 · rank · Σ (in + out): one Fisher number for each of the adapter's."""
        fisher = adapter_nbytes(self.size, self._dimensions.linears, width=SINGLE) if self.fisher else 0
        return Ledger(super().ledger().deployed, fisher)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "strength": self.strength}

    def _take_up(self, state: State, directory: Path) -> None:
        check_like(state.training, {name: tensor.float() for name, tensor in state.deployed.items()}, directory)
        self.fisher = dict(state.training)
