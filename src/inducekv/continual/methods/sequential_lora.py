"""Sequential LoRA: one adapter trained on one task after another, with nothing against forgetting."""

from __future__ import annotations

from typing import Any

from inducekv.continual.ledger import solve_size as solve_size
from inducekv.continual.methods.adapter import AdapterMethod


class SequentialLora(AdapterMethod):
    """PEFT's LoRA on the text model's linears, α = 2 · rank, no dropout."""

    name = "sequential_lora"
    title = "Sequential LoRA"

    def _config(self) -> Any:
        return self._peft.LoraConfig(
            r=self.size.rank,
            lora_alpha=2 * self.size.rank,
            lora_dropout=0.0,
            bias="none",
            target_modules=list(self.size.modules),
        )
