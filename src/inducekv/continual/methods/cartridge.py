"""Cartridge: keys and values of virtual tokens, trained directly. The same unit of storage as a memory's payload."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor, nn

from inducekv.continual.ledger import Dimensions
from inducekv.continual.methods.prefix import PrefixMethod, injection_of
from inducekv.continual.methods.training import Recipe, TrainingBatch
from inducekv.examples import Example
from inducekv.injection import Injection
from inducekv.rope import shift_keys


class Cartridge(PrefixMethod):
    """PEFT's cartridge (Eyuboglu et al. 2025): begins as the first task's own examples, read once; its first token is
    not trained.
    """

    name = "cartridge"
    title = "Cartridge"
    recipe = Recipe(epochs=60, learning_rate=1e-1)

    @classmethod
    def per_token(cls, dimensions: Dimensions) -> int:
        return dimensions.kv_width

    def _encoder(self) -> nn.Module:
        dimensions = self._dimensions
        config = self._peft.CartridgeConfig(
            task_type="CAUSAL_LM",
            num_virtual_tokens=self.size,
            num_frozen_tokens=min(1, self.size - 1),
            num_layers=dimensions.layers,
            num_attention_heads=dimensions.kv_heads,
            token_dim=dimensions.kv_heads * dimensions.head_dim,
        )
        return self._peft.tuners.cartridge.CartridgeEncoder(config)

    def _kept(self, module: nn.Module) -> dict[str, nn.Parameter]:
        return dict(module.named_parameters())  # the frozen token too

    def _begin(self, module: nn.Module, batches: Sequence[TrainingBatch]) -> None:
        if self.learned:
            return
        from peft.tuners.cartridge.utils import prompt_embeddings_from_past_key_values

        keys, values = self._read([example for batch in batches for example in batch.examples])
        layers = [(k[None], v[None]) for k, v in zip(keys, values, strict=True)]
        prefix = prompt_embeddings_from_past_key_values(layers, num_virtual_tokens=self.size)
        module.load_prompt_embeddings(prefix)  # type: ignore[operator]

    def _read(
        self, examples: Sequence[Example]
    ) -> tuple[Float[Tensor, "layers kv_heads size head_dim"], Float[Tensor, "layers kv_heads size head_dim"]]:
        """Keys and values of as many examples as fill the cartridge (again and again if they are few), each read alone,
        one after another before position 0; the last ones end it."""
        keys: list[Tensor] = []
        values: list[Tensor] = []
        place, tokens = self._backbone.family.first_position, 0
        while tokens < self.size:
            for example in examples:
                (encoded,) = self._backbone.encode([example])
                back = torch.tensor([place], device=encoded.keys.device)
                keys.insert(0, shift_keys(self._backbone.text_model, encoded.keys[None], back)[0])
                values.insert(0, encoded.values)
                place, tokens = place - encoded.span, tokens + encoded.tokens
                if tokens >= self.size:
                    break
        return torch.cat(keys, 2)[:, :, -self.size :], torch.cat(values, 2)[:, :, -self.size :]

    def _injection(self, encoder: nn.Module, rows: int, asked: Float[Tensor, "rows hidden"] | None = None) -> Injection:
        dimensions = self._dimensions
        shape = (self.size, dimensions.layers, 2, dimensions.kv_heads, dimensions.head_dim)
        flat: Tensor = encoder.weight  # type: ignore[assignment]
        keys, values = flat.view(shape).permute(2, 1, 3, 0, 4)[:, None]
        return injection_of(keys, values, rows)
