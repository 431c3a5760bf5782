"""Methods that train what attention reads before the prompt: prompts, or keys and values themselves."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import DynamicCache

from inducekv.backbone import Backbone
from inducekv.cache_name import CACHE
from inducekv.continual.ledger import HALF, Dimensions, Ledger, count_that_fits
from inducekv.continual.methods.storage import Tensors
from inducekv.continual.methods.trained import TrainedMethod, frozen, put
from inducekv.continual.methods.training import Loss, TrainingBatch, answer_loss
from inducekv.examples import Example
from inducekv.injection import Injection
from inducekv.progress import SILENT, Progress
from inducekv.rope import shift_keys


class PrefixMethod(TrainedMethod):
    """Virtual tokens before the prompt, put there by the same injection that memories use.

    Keys lie at negative positions: for rotary decoders that is what virtual tokens at the beginning of the prompt are,
    in every family that this library supports. (PEFT's own way goes through the model's cache and positions, which
    several vision-language models do not take.)
    """

    size: int
    most: ClassVar[int] = 512
    """Virtual tokens at most, whatever the budget. CHOICE: every one costs time in every step and answer."""
    keyed: ClassVar[bool] = False
    """What a question reads depends on its key."""

    @abstractmethod
    def _encoder(self) -> nn.Module:
        """A fresh module that holds the numbers to be trained."""

    @abstractmethod
    def _injection(self, encoder: nn.Module, rows: int, asked: Float[Tensor, "rows hidden"] | None = None) -> Injection:
        """What each of so many questions reads; `asked`: their keys, for methods that are `keyed`."""

    @classmethod
    @abstractmethod
    def per_token(cls, dimensions: Dimensions) -> int:
        """Numbers of one virtual token."""

    @classmethod
    def solve(cls, dimensions: Dimensions, budget: int, stream_length: int = 1) -> int:
        """Virtual tokens that fit in `budget` bytes, at most `most`."""
        return min(cls.most, count_that_fits("virtual token", HALF * cls.per_token(dimensions), budget))

    def ledger(self) -> Ledger:
        """2 · tokens · numbers of a token."""
        return Ledger(HALF * self.size * self.per_token(self._dimensions) if self.weights else 0)

    def describe(self) -> dict[str, Any]:
        return {"tokens": self.size, **super().describe()}

    @contextmanager
    def attached(self, weights: Tensors | None) -> Iterator[nn.Module]:
        with frozen(self._backbone.model):
            with torch.random.fork_rng():
                torch.manual_seed(self._seed)
                wide = torch.promote_types(self._backbone.dtype, torch.float32)
                encoder = self._encoder().to(self._backbone.device, wide)
            if weights is not None:
                put(self._kept(encoder), weights)
            yield encoder

    def _loss(self, module: nn.Module, batches: Sequence[TrainingBatch]) -> Loss:
        return lambda batch: answer_loss(self._backbone, batch, self._injection(module, len(batch.examples)))

    @torch.no_grad()
    def answer(self, examples: Sequence[Example], progress: Progress = SILENT, task: str | None = None) -> list[str]:
        backbone = self._backbone
        prepared = backbone.prepare(examples, False, batch_size=self.batch_size)
        asked = backbone.query_keys(prepared, key_pool="last", progress=progress) if self.keyed else None
        with self.attached(self.weights) as encoder:

            def injection(rows: Tensor) -> Injection:
                return self._injection(encoder, len(rows), None if asked is None else asked[rows.to(asked.device)])

            return backbone.generate(prepared, injection, max_new_tokens=self._max_new_tokens, progress=progress)


def injection_of(
    keys: Float[Tensor, "rows layers kv_heads tokens head_dim"],
    values: Float[Tensor, "rows layers kv_heads tokens head_dim"],
    rows: int,
) -> Injection:
    """Virtual tokens that all rows read alike, from one row's or from every row's own."""
    keys, values = (x.expand(rows, -1, -1, -1, -1) for x in (keys, values))
    tokens = keys.shape[3]
    mask = torch.ones(rows, tokens, dtype=torch.bool, device=keys.device)
    slots = torch.zeros(rows, tokens, dtype=torch.long, device=keys.device)
    return Injection(list(keys.unbind(1)), list(values.unbind(1)), mask, None, slots, 1)


def prompts_as_memory(
    backbone: Backbone,
    prompts: Float[Tensor, "prompts tokens hidden"],
    rows: int,
    read: Int[Tensor, " rows"] | None = None,
) -> Injection:
    """Soft prompts as the keys and values that the decoder makes of them, just before position 0.

    Nothing before the prompts is there to be seen, so their keys and values do not depend on the question; gradients
    reach the prompts through them.

    Args:
        rows: how many rows read.
        read: which of the prompts each row reads; None: there is one, or one for each.
    """
    tokens = prompts.shape[1]
    output = backbone.text_model(inputs_embeds=prompts.to(backbone.dtype), **{CACHE: DynamicCache()}, use_cache=True)
    layers = output[CACHE].layers
    keys, values = (torch.stack([getattr(layer, name) for layer in layers], 1) for name in ("keys", "values"))
    back = torch.full((len(prompts),), backbone.family.first_position - tokens, device=keys.device)
    keys = shift_keys(backbone.text_model, keys, back)
    return injection_of(keys, values, rows) if read is None else injection_of(keys[read], values[read], rows)
