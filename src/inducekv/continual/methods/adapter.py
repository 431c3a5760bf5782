"""Methods that train a PEFT adapter: attached while they learn or answer, gone in between."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from inducekv.backbone import Backbone
from inducekv.continual.ledger import Dimensions, Ledger, LoraSize, adapter_nbytes, solve_size
from inducekv.continual.methods.base import Method
from inducekv.continual.methods.storage import State, check_like, count_of, read_state, tensors_nbytes, write_state
from inducekv.continual.methods.training import Loss, Recipe, TrainingBatch, answer_loss, batches_of, fit, generator_of
from inducekv.continual.stream import Experience
from inducekv.examples import Example
from inducekv.progress import SILENT, Progress

Adapter = dict[str, Tensor]
"""Trained numbers by their parameter's name, float16."""


class AdapterMethod(Method):
    """An adapter of PEFT on the text model, at most `budget` bytes in float16.

    Its weights are rounded to float16 after each task: what is measured is what would be stored. A method says in
    `_config` which adapter it is, and overrides what else differs: the examples (`_examples`), the adapter's modules
    (`_shape`), the loss (`_loss`), what it keeps for later (`_after_task`).

    Raises:
        ImportError: PEFT is not installed (extra `bench`).
        ValueError: the budget holds no adapter.
    """

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
        self._recipe = recipe or Recipe()
        self._seed = seed
        self._max_new_tokens = max_new_tokens
        self._stream_length = stream_length
        self._dimensions = Dimensions.of(backbone)
        self.size = self.solve(self._dimensions, budget, stream_length)
        self.learned = 0
        self.adapter: Adapter | None = None
        self.losses: list[list[float]] = []

    # -- what a method decides

    @classmethod
    def solve(cls, dimensions: Dimensions, budget: int, stream_length: int = 1) -> LoraSize:
        """The largest adapter within `budget` bytes."""
        return solve_size(dimensions.linears, budget)

    @abstractmethod
    def _config(self) -> Any:
        """PEFT's configuration of the adapter."""

    def _start(self) -> Adapter | None:
        """The adapter that training starts from; None: a fresh one."""
        return self.adapter

    def _shape(self, adapted: nn.Module) -> None:
        """Changes a newly attached adapter's modules."""

    def _examples(self, experience: Experience) -> list[Example]:
        """What is trained on when a task comes."""
        return list(experience.train)

    def _recipe_for(self, examples: int) -> Recipe:
        """How a task with so many examples is trained."""
        return self._recipe

    def _loss(self, adapted: nn.Module, batches: Sequence[TrainingBatch]) -> Loss:
        """The loss of one batch, made when a task's training begins."""
        return lambda batch: answer_loss(self._backbone, batch)

    def _after_task(self, adapted: nn.Module, batches: Sequence[TrainingBatch], experience: Experience) -> None:
        """Keeps what later tasks need; the adapter is the stored one (rounded)."""

    # -- Method

    def learn(self, experience: Experience, progress: Progress = SILENT) -> None:
        self.adapter = self._train(experience, self._start(), progress)
        self.learned += 1

    def _train(self, experience: Experience, start: Mapping[str, Tensor] | None, progress: Progress) -> Adapter:
        generator = generator_of(self._seed, self.learned)
        examples = self._examples(experience)
        recipe = self._recipe_for(len(examples))
        with self.attached(start) as adapted:
            batches = batches_of(self._backbone, examples, recipe, generator)
            parameters = trained(adapted)
            loss = self._loss(adapted, batches)
            what = f"{self.title}: training on {len(examples)} examples"
            losses = fit(parameters.values(), batches, loss, recipe, generator, progress, what)
            rounded = {name: value.detach().to("cpu", torch.float16) for name, value in parameters.items()}
            _put(parameters, rounded)
            self._after_task(adapted, batches, experience)
        self.losses.append(losses)
        return rounded

    def answer(self, examples: Sequence[Example], progress: Progress = SILENT, task: str | None = None) -> list[str]:
        with self.attached(self.adapter):
            return self._backbone.generate(examples, max_new_tokens=self._max_new_tokens, progress=progress)

    @property
    def deployed_bytes(self) -> int:
        return tensors_nbytes(self.adapter or {})

    @property
    def training_bytes(self) -> int:
        return tensors_nbytes(self._training())

    def ledger(self) -> Ledger:
        return Ledger(adapter_nbytes(self.size, self._dimensions.linears) if self.adapter else 0)

    def describe(self) -> dict[str, Any]:
        return {"rank": self.size.rank, "modules": len(self.size.modules), **asdict(self._recipe)}

    def _training(self) -> Mapping[str, Tensor]:
        """Tensors carried only to learn more."""
        return {}

    def _facts(self) -> dict[str, Any]:
        """Small JSON values to keep with the tensors."""
        return {"learned": self.learned}

    def save(self, directory: Path) -> None:
        write_state(directory, self.name, State(self.adapter or {}, self._training(), self._facts()))

    def load(self, directory: Path) -> None:
        state = read_state(directory, self.name)
        learned = count_of(state.facts, "learned", directory)
        if learned:
            check_like(state.deployed, self._expected(), directory)
        self._take_up(state, directory)
        self.adapter = dict(state.deployed) if learned else None
        self.learned = learned

    def _expected(self) -> Adapter:
        """An adapter of the right names and shapes."""
        with self.attached(None) as adapted:
            return {name: torch.empty(p.shape, dtype=torch.float16) for name, p in trained(adapted).items()}

    def _take_up(self, state: State, directory: Path) -> None:
        """Takes up what `_training` and `_facts` gave."""

    # -- attaching

    @contextmanager
    def attached(self, adapter: Mapping[str, Tensor] | None) -> Iterator[nn.Module]:
        """The model with the adapter in place; on exit the very same modules and flags as before."""
        model = self._backbone.model
        flags = {name: parameter.requires_grad for name, parameter in model.named_parameters()}
        extra = set(vars(model))
        with torch.random.fork_rng(), warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of PEFT's, about names in transformers
            torch.manual_seed(self._seed)
            adapted = self._peft.get_peft_model(model, self._config())
            try:
                self._shape(adapted)
            except BaseException:
                _remove(adapted, model, flags, extra)
                raise
        try:
            if adapter is not None:
                _put(trained(adapted), adapter)
            yield adapted
        finally:
            _remove(adapted, model, flags, extra)


def trained(adapted: nn.Module) -> dict[str, nn.Parameter]:
    """The adapter's own parameters by name: those that get gradients."""
    return {name: parameter for name, parameter in adapted.named_parameters() if parameter.requires_grad}


@torch.no_grad()
def _put(parameters: Mapping[str, nn.Parameter], values: Mapping[str, Tensor]) -> None:
    for name, parameter in parameters.items():
        parameter.copy_(values[name])


def _remove(adapted: Any, model: nn.Module, flags: Mapping[str, bool], extra: set[str]) -> None:
    adapted.unload()
    for attribute in set(vars(model)) - extra:
        delattr(model, attribute)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(flags[name])
        parameter.grad = None
