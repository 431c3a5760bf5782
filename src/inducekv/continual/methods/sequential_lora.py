"""Sequential LoRA: the same bytes spent on weights instead of entries."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from inducekv.backbone import Backbone
from inducekv.continual.methods.base import Method
from inducekv.continual.stream import Experience
from inducekv.examples import Example
from inducekv.progress import SILENT, Progress

_BYTES_PER_NUMBER = 2  # adapters are stored in float16
_ATTENTION_IN = ("q_proj", "v_proj", "query", "value", "qkv_proj", "c_attn")


@dataclass(frozen=True)
class LoraRecipe:
    """How each task is trained: AdamW, warm-up then cosine, answer tokens only, α = 2 · rank.

    CHOICE: epochs and learning rate are the best of five pairs on a demo stream whose seed no result uses.
    """

    epochs: int = 20
    learning_rate: float = 2e-3
    batch_size: int = 16
    warm_up: float = 0.05
    max_grad_norm: float = 1.0
    max_examples: int | None = None
    """Train on at most this many examples a task, drawn with the seed; None for all."""


@dataclass(frozen=True)
class LoraSize:
    """Which linears get an adapter, and its rank."""

    modules: tuple[str, ...]
    rank: int
    nbytes: int


def solve_size(linears: Mapping[str, tuple[int, int]], budget: int) -> LoraSize:
    """The widest coverage and then the highest rank whose float16 adapters fit in `budget` bytes.

    Tried in order: every linear; the attention's query and value linears; those of ever fewer layers, from the last.

    Args:
        linears: name -> (in features, out features), in the model's order.

    Raises:
        ValueError: not even one rank-1 adapter fits.
    """
    query_value = [name for name in linears if name.rpartition(".")[2] in _ATTENTION_IN]
    narrower = [query_value[start:] for start in range(len(query_value))]
    for modules in [list(linears), *narrower, *[[name] for name in reversed(list(linears))]]:
        per_rank = _BYTES_PER_NUMBER * sum(sum(linears[name]) for name in modules)
        rank = budget // per_rank if per_rank else 0
        if modules and rank >= 1:
            widest = max(min(linears[name]) for name in modules)
            rank = min(rank, widest)
            return LoraSize(tuple(modules), rank, rank * per_rank)
    raise ValueError(f"a budget of {budget} bytes is too small for one rank-1 LoRA adapter; raise the budget")


class SequentialLora(Method):
    """One PEFT LoRA on the text model, trained on one task after another, at most `budget` bytes in float16.

    The adapter is attached only while it learns or answers; in between the backbone is the plain one, so other methods
    can share it. Adapter weights are rounded to float16 after each task: what is measured is what would be stored.

    Raises:
        ImportError: PEFT is not installed (extra `bench`).
        ValueError: the budget holds no adapter.
    """

    name: ClassVar[str] = "sequential_lora"
    title: ClassVar[str] = "Sequential LoRA"

    def __init__(
        self,
        backbone: Backbone,
        budget: int,
        recipe: LoraRecipe | None = None,
        seed: int = 0,
        max_new_tokens: int = 32,
    ) -> None:
        import peft

        self._peft = peft
        self._backbone = backbone
        self._recipe = recipe or LoraRecipe()
        self._generator = torch.Generator().manual_seed(seed)
        self._seed = seed
        self._max_new_tokens = max_new_tokens
        self.size = solve_size(_text_linears(backbone), budget)
        self._adapter: dict[str, Tensor] | None = None
        self.losses: list[list[float]] = []

    @property
    def deployed_bytes(self) -> int:
        return self.size.nbytes if self._adapter is None else sum(v.numel() * 2 for v in self._adapter.values())

    def learn(self, experience: Experience, progress: Progress = SILENT) -> None:
        with self._attached() as adapted:
            self.losses.append(self._train(adapted, list(experience.train), progress))
            state = self._peft.get_peft_model_state_dict(adapted)
            self._adapter = {name: value.detach().to("cpu", torch.float16) for name, value in state.items()}

    def answer(self, examples: Sequence[Example], progress: Progress = SILENT) -> list[str]:
        with self._attached():
            return self._backbone.generate(examples, max_new_tokens=self._max_new_tokens, progress=progress)

    def _train(self, adapted: nn.Module, examples: list[Example], progress: Progress) -> list[float]:
        recipe, backbone = self._recipe, self._backbone
        order = torch.randperm(len(examples), generator=self._generator).tolist()[: recipe.max_examples]
        batches = [
            backbone.prepare(
                [examples[i] for i in order[start : start + recipe.batch_size]], with_answer=True, embed=True
            )
            for start in range(0, len(order), recipe.batch_size)
        ]
        trained = [parameter for parameter in adapted.parameters() if parameter.requires_grad]
        optimiser = torch.optim.AdamW(trained, lr=recipe.learning_rate, weight_decay=0.0)
        steps = recipe.epochs * len(batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, _warm_up_cosine(steps, recipe.warm_up))
        losses: list[float] = []
        progress.start(f"LoRA of rank {self.size.rank}", steps)
        with torch.enable_grad():
            for _ in range(recipe.epochs):
                for index in torch.randperm(len(batches), generator=self._generator).tolist():
                    scores = backbone.score(batches[index])
                    loss = scores.token_nll.sum() / scores.token_mask.sum()
                    optimiser.zero_grad()
                    loss.backward()
                    nn.utils.clip_grad_norm_(trained, recipe.max_grad_norm)
                    optimiser.step()
                    schedule.step()
                    losses.append(float(loss.detach()))
                    progress.advance()
        progress.stop()
        return losses

    @contextmanager
    def _attached(self) -> Iterator[nn.Module]:
        """The model with the adapter in place; on exit the very same modules and flags as before."""
        model = self._backbone.model
        flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        extra = set(vars(model))
        config = self._peft.LoraConfig(
            r=self.size.rank,
            lora_alpha=2 * self.size.rank,
            lora_dropout=0.0,
            bias="none",
            target_modules=list(self.size.modules),
        )
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of PEFT's, about names in transformers
            torch.manual_seed(self._seed)
            adapted = self._peft.get_peft_model(model, config)
        try:
            if self._adapter is not None:
                self._peft.set_peft_model_state_dict(adapted, self._adapter)
            yield adapted
        finally:
            adapted.unload()
            for attribute in set(vars(model)) - extra:
                delattr(model, attribute)
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(flags[name])
                parameter.grad = None


def _text_linears(backbone: Backbone) -> dict[str, tuple[int, int]]:
    """Every linear inside the text model's layers, by its full name in the model."""
    inside = {
        id(module)
        for layer in backbone.text_model.layers
        for module in layer.modules()
        if isinstance(module, nn.Linear)
    }
    return {
        name: (module.in_features, module.out_features)
        for name, module in backbone.model.named_modules()
        if isinstance(module, nn.Linear) and id(module) in inside
    }


def _warm_up_cosine(steps: int, warm_up: float) -> Callable[[int], float]:
    rising = max(1, round(steps * warm_up))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return factor
