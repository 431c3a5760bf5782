"""Prompt tuning: soft prompts before every question, trained on one task after another."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor, nn

from inducekv.continual.ledger import Dimensions
from inducekv.continual.methods.prefix import PrefixMethod, prompts_as_memory
from inducekv.continual.methods.training import Recipe
from inducekv.injection import Injection


class PromptTuning(PrefixMethod):
    """PEFT's prompt embedding (Lester et al. 2021), which begins as words of the vocabulary drawn with the seed."""

    name = "prompt_tuning"
    title = "Prompt tuning"
    recipe = Recipe(epochs=60, learning_rate=3e-2)
    most = 64  # CHOICE: bounds the time that one step takes

    @classmethod
    def per_token(cls, dimensions: Dimensions) -> int:
        return dimensions.hidden_size

    def _encoder(self) -> nn.Module:
        config = self._peft.PromptTuningConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=self.size,
            token_dim=self._dimensions.hidden_size,
            num_transformer_submodules=1,
            prompt_tuning_init="SAMPLE_VOCAB",
        )
        return self._peft.PromptEmbedding(config, self._backbone.model.get_input_embeddings())

    def _injection(self, encoder: nn.Module, rows: int, asked: Float[Tensor, "rows hidden"] | None = None) -> Injection:
        prompts: nn.Embedding = encoder.embedding  # type: ignore[assignment]
        return prompts_as_memory(self._backbone, prompts.weight[None], rows)
