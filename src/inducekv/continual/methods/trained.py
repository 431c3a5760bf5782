"""Methods that train a few numbers on each task: what they share, whatever the numbers are."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inducekv.backbone import Backbone
from inducekv.continual.ledger import Dimensions
from inducekv.continual.methods.base import Method
from inducekv.continual.methods.storage import State, check_like, count_of, read_state, tensors_nbytes, write_state
from inducekv.continual.methods.training import (
    Loss,
    Recipe,
    TrainingBatch,
    TrainingDiverged,
    answer_loss,
    batches_of,
    fit,
    generator_of,
)
from inducekv.continual.stream import Experience
from inducekv.examples import Example
from inducekv.progress import SILENT, Progress

Weights = dict[str, Tensor]
"""Trained numbers by their parameter's name, float16."""


class TrainedMethod(Method):
    """A module beside (or inside) the frozen backbone, trained on each task, at most `budget` bytes in float16.

    Its weights are rounded to float16 after each task: what is measured is what would be stored. A method says in
    `attached` what is trained, and overrides what else differs: where training starts (`_start`, `_begin`), the
    examples (`_examples`), the loss (`_loss`), what it keeps for later (`_after_task`).

    Args:
        backbone: frozen; only read.
        budget: bytes that may be deployed.
        recipe: how each task is trained; None: the method's own default.
        seed: of the initial weights and of the order of examples.
        max_new_tokens: longest answer in tokens.
        stream_length: tasks that will come.

    Raises:
        ImportError: PEFT is not installed (extra `bench`).
        ValueError: the budget is too small.
    """

    recipe = Recipe()

    def __init__(
        self,
        backbone: Backbone,
        budget: int,
        recipe: Recipe | None = None,
        seed: int = 0,
        max_new_tokens: int = 32,
        stream_length: int = 1,
    ) -> None:
        import peft

        self._peft = peft
        self._backbone = backbone
        self._recipe = recipe or self.recipe
        self._seed = seed
        self._max_new_tokens = max_new_tokens
        self._stream_length = stream_length
        self._dimensions = Dimensions.of(backbone)
        self.size = self.solve(self._dimensions, budget, stream_length)
        self.learned = 0
        self.weights: Weights | None = None
        self.losses: list[list[float]] = []

    # -- what a method decides

    @classmethod
    @abstractmethod
    def solve(cls, dimensions: Dimensions, budget: int, stream_length: int = 1) -> Any:
        """The largest size within `budget` bytes.

        Raises:
            ValueError: the budget is too small; names the smallest that works.
        """

    @abstractmethod
    def attached(self, weights: Mapping[str, Tensor] | None) -> AbstractContextManager[nn.Module]:
        """The module in place, with these weights or fresh ones; on exit the backbone is as before."""

    def _start(self) -> Weights | None:
        """The weights that training starts from; None: fresh ones."""
        return self.weights

    def _examples(self, experience: Experience) -> list[Example]:
        """What is trained on when a task comes."""
        return list(experience.train)

    def _recipe_for(self, examples: int) -> Recipe:
        """How a task with so many examples is trained."""
        return self._recipe

    def _begin(self, module: nn.Module, batches: Sequence[TrainingBatch]) -> None:
        """Prepares the module for a task's training."""

    def _loss(self, module: nn.Module, batches: Sequence[TrainingBatch]) -> Loss:
        """The loss of one batch, made when a task's training begins."""
        return lambda batch: answer_loss(self._backbone, batch)

    def _after_task(self, module: nn.Module, batches: Sequence[TrainingBatch], experience: Experience) -> None:
        """Keeps what later tasks need; the weights are the stored ones (rounded)."""

    def _kept(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """The parameters to be stored, by name."""
        return trained(module)

    def _training(self) -> Mapping[str, Tensor]:
        """Tensors carried only to learn more."""
        return {}

    def _facts(self) -> dict[str, Any]:
        """Small JSON values to keep with the tensors."""
        return {"learned": self.learned}

    def _take_up(self, state: State, directory: Path) -> None:
        """Takes up what `_training` and `_facts` gave."""

    # -- Method

    def learn(self, experience: Experience, progress: Progress = SILENT) -> None:
        generator = generator_of(self._seed, self.learned)
        examples = self._examples(experience)
        recipe = self._recipe_for(len(examples))
        with self.attached(self._start()) as module:
            batches = batches_of(self._backbone, examples, recipe, generator)
            self._begin(module, batches)
            loss = self._loss(module, batches)
            what = f"{self.title}: training on {len(examples)} examples"
            losses = fit(trained(module).values(), batches, loss, recipe, generator, progress, what)
            kept = self._kept(module)
            rounded = {name: value.detach().to("cpu", torch.float16) for name, value in kept.items()}
            if not all(bool(value.isfinite().all()) for value in rounded.values()):
                raise TrainingDiverged(
                    f"{what}: the trained weights are no finite numbers in float16; give the method a recipe with a "
                    f"learning rate below {recipe.learning_rate:g}"
                )
            put(kept, rounded)
            self._after_task(module, batches, experience)
        self.weights = rounded
        self.losses.append(losses)
        self.learned += 1

    def answer(self, examples: Sequence[Example], progress: Progress = SILENT, task: str | None = None) -> list[str]:
        with self.attached(self.weights):
            return self._backbone.generate(
                examples, max_new_tokens=self._max_new_tokens, batch_size=self.batch_size, progress=progress
            )

    @property
    def deployed_bytes(self) -> int:
        return tensors_nbytes(self.weights or {})

    @property
    def training_bytes(self) -> int:
        return tensors_nbytes(self._training())

    def describe(self) -> dict[str, Any]:
        return asdict(self._recipe)

    def save(self, directory: Path) -> None:
        write_state(directory, self.name, State(self.weights or {}, self._training(), self._facts()))

    def load(self, directory: Path) -> None:
        state = read_state(directory, self.name)
        learned = count_of(state.facts, "learned", directory)
        if learned:
            check_like(state.deployed, self._expected(), directory)
        self._take_up(state, directory)
        self.weights = dict(state.deployed) if learned else None
        self.learned = learned

    def _expected(self) -> Weights:
        """Weights of the right names and shapes."""
        with self.attached(None) as module:
            return {name: torch.empty(p.shape, dtype=torch.float16) for name, p in self._kept(module).items()}


def trained(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters that get gradients, by name."""
    return {name: parameter for name, parameter in module.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def put(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    """Overwrites parameters with stored values."""
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


@contextmanager
def frozen(model: nn.Module) -> Iterator[None]:
    """While open, none of the model's own parameters gets gradients; on exit their flags are as before."""
    flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
    model.requires_grad_(False)
    try:
        yield
    finally:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(flags[name])
            parameter.grad = None
