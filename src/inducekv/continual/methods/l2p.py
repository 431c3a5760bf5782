"""L2P: a pool of prompts, of which every question picks the few whose keys are nearest to its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.functional import normalize

from inducekv.continual.ledger import HALF, Dimensions, count_that_fits
from inducekv.continual.methods.prefix import PrefixMethod, prompts_as_memory
from inducekv.continual.methods.trained import put
from inducekv.continual.methods.training import Loss, Recipe, TrainingBatch, answer_loss
from inducekv.injection import Injection

LENGTH = 5
"""Tokens of a prompt (Wang et al. 2022)."""
PICKED = 5
"""Prompts that a question picks (Wang et al. 2022)."""


class Pool(nn.Module):
    """Prompts and their keys.

    Attributes:
        keys: `[prompts, hidden]`.
        prompts: `[prompts, tokens, hidden]`.
    """

    def __init__(self, keys: Float[Tensor, "prompts hidden"], prompts: Float[Tensor, "prompts tokens hidden"]) -> None:
        super().__init__()
        self.keys, self.prompts = nn.Parameter(keys), nn.Parameter(prompts)


class L2P(PrefixMethod):
    """Learning to Prompt (Wang et al. 2022): loss + pull · (1 - mean cosine of a question's key and those it picked).

    A question's key is the frozen backbone's, the same that InduceKV retrieves with. CHOICE: prompts begin as words of
    the vocabulary, and keys as those of the first task's questions: anything else is nearer to one prompt than to all
    others for every question.
    """

    name = "l2p"
    title = "L2P"
    recipe = Recipe(epochs=60, learning_rate=3e-2)
    most = 10  # prompts of the pool, whatever the budget (Wang et al. 2022)
    keyed = True
    pull = 0.5

    @classmethod
    def per_token(cls, dimensions: Dimensions) -> int:
        """Numbers of one prompt and its key."""
        return (LENGTH + 1) * dimensions.hidden_size

    @classmethod
    def solve(cls, dimensions: Dimensions, budget: int, stream_length: int = 1) -> int:
        """Prompts of the pool."""
        return min(cls.most, count_that_fits("prompt with its key", HALF * cls.per_token(dimensions), budget))

    def describe(self) -> dict[str, Any]:
        described = super().describe()
        return {"prompts": described.pop("tokens"), "length": LENGTH, "picked": min(PICKED, self.size), **described}

    def _encoder(self) -> nn.Module:
        words = self._backbone.model.get_input_embeddings().weight
        drawn = words.detach()[torch.randint(len(words), (self.size, LENGTH), device=words.device)].clone()
        return Pool(torch.randn(self.size, words.shape[1], device=words.device), drawn)

    def _begin(self, module: nn.Module, batches: Sequence[TrainingBatch]) -> None:
        if not self.learned:
            known = self._backbone.query_keys(
                [example for batch in batches for example in batch.examples], key_pool="last"
            )
            drawn = torch.arange(self.size, device=known.device) * len(known) // self.size
            put({"keys": module.keys}, {"keys": known[drawn]})  # type: ignore[dict-item]

    def _loss(self, module: nn.Module, batches: Sequence[TrainingBatch]) -> Loss:
        asked = [self._backbone.query_keys(batch.examples, key_pool="last") for batch in batches]

        def loss(batch: TrainingBatch) -> Tensor:
            injection, similarity = self._pick(module, asked[batch.place])
            return answer_loss(self._backbone, batch, injection) + self.pull * (1 - similarity.mean())

        return loss

    def _injection(self, encoder: nn.Module, rows: int, asked: Float[Tensor, "rows hidden"] | None = None) -> Injection:
        if asked is None:
            raise ValueError("a question picks its prompts by its key, and none was given")
        return self._pick(encoder, asked)[0]

    def _pick(
        self, pool: Any, asked: Float[Tensor, "questions hidden"]
    ) -> tuple[Injection, Float[Tensor, "questions picked"]]:
        """The prompts that each question reads, and how near their keys are to its own.

        A task's questions are alike and pick alike: each choice goes through the decoder once.
        """
        similarity = asked @ normalize(pool.keys.float(), dim=-1).T
        nearest = similarity.topk(min(PICKED, self.size), dim=-1)
        choices, read = nearest.indices.unique(dim=0, return_inverse=True)
        prompts = pool.prompts[choices].flatten(1, 2)
        return prompts_as_memory(self._backbone, prompts, len(asked), read), nearest.values
