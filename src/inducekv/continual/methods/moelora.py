"""MoELoRA: experts of low rank in every linear, mixed for each token by a router."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from inducekv.continual.ledger import Shape
from inducekv.continual.methods.sequential_lora import SequentialLora
from inducekv.continual.methods.training import Recipe


class Routed(nn.Module):
    """A of a LoRA whose ranks are split into experts: Σ_e g_e(x) B_e A_e x with g = softmax(router x), dense.

    Stands in LoRA's A, so that PEFT's forward pass does the rest.
    """

    def __init__(self, down: nn.Linear, experts: int) -> None:
        super().__init__()
        self.down, self.experts = down, experts
        self.router = nn.Linear(down.in_features, experts, bias=False).to(down.weight)

    @property
    def weight(self) -> Tensor:
        """PEFT asks for its dtype."""
        return self.down.weight

    def forward(self, x: Tensor) -> Tensor:
        gates = torch.softmax(self.router(x), -1)
        return (self.down(x).unflatten(-1, (self.experts, -1)) * gates[..., None]).flatten(-2)


class MoELora(SequentialLora):
    """CoIN's MoELoRA (Chen et al. 2024): rank / E for each of E experts, trained on one task after another."""

    name = "moelora"
    title = "MoELoRA"
    experts = 4
    recipe = Recipe(learning_rate=5e-3)

    @staticmethod
    def fixed(shape: Shape) -> int:
        """The router: E rows as wide as the linear's input."""
        return MoELora.experts * shape[0]

    def _shape(self, adapted: nn.Module) -> None:
        for module in list(adapted.modules()):
            if isinstance(module, self._peft.tuners.lora.LoraLayer):
                for adapter, down in list(module.lora_A.items()):
                    module.lora_A[adapter] = Routed(down, self.experts)

    def describe(self) -> dict[str, Any]:
        return {**super().describe(), "experts": self.experts}
