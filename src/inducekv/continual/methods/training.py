"""The training loop that all trained methods share: AdamW on answer tokens, warm-up, then cosine."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from inducekv.backbone import Backbone, RowsInjection
from inducekv.examples import Example
from inducekv.progress import Progress
from inducekv.rendering import Prepared
from inducekv.scoring import capped


@dataclass(frozen=True)
class Recipe:
    """How each task is trained.

    CHOICE: these defaults are those of sequential LoRA, and methods that need others say so in their own `recipe`.
    LoRA takes 20 passes over a task: with half of them it did not learn a task of thirty examples at all. Soft prompts
    and the cartridge take 60: with 20 they could not learn two tasks. What was tried for which method, on what data,
    and what decided, is in `docs/bench/methods.md`.

    Attributes:
        epochs: passes over a task's examples.
        learning_rate: of AdamW (no weight decay), at its peak.
        batch_size: examples a step.
        warm_up: part of the steps in which the learning rate rises; a cosine to 0 follows.
        max_grad_norm: gradients are clipped to this norm.
        max_examples: train on at most this many examples a task, drawn with the seed; None for all.
    """

    epochs: int = 20
    learning_rate: float = 2e-3
    batch_size: int = 16
    warm_up: float = 0.05
    max_grad_norm: float = 1.0
    max_examples: int | None = None

    def scaled(self, epochs: int | None, learning_rate: float | None) -> Recipe:
        """This recipe, changed by the factors that would give LoRA's (the defaults) these values; None: as it is."""
        usual = Recipe()
        more, faster = (
            (epochs or usual.epochs) / usual.epochs,
            (learning_rate or usual.learning_rate) / usual.learning_rate,
        )
        return replace(self, epochs=max(1, round(self.epochs * more)), learning_rate=self.learning_rate * faster)


@dataclass(frozen=True)
class TrainingBatch:
    """Examples of one step, rendered, padded and embedded once for all epochs.

    Attributes:
        place: in the list of batches.
        examples: in the order of `prepared`'s rows.
        prepared: of the same examples, in a single batch.
    """

    place: int
    examples: tuple[Example, ...]
    prepared: Prepared


class TrainingDiverged(ValueError):
    """A loss or weights that are no finite numbers: what was trained is worth nothing."""


Loss = Callable[[TrainingBatch], Float[Tensor, ""]]


def generator_of(seed: int, task: int) -> torch.Generator:
    """The generator of one task's draws: a run that is taken up after any task draws as one that never stopped."""
    return torch.Generator().manual_seed(int(np.random.SeedSequence([seed, task]).generate_state(1)[0]))


def batches_of(
    backbone: Backbone, examples: Sequence[Example], recipe: Recipe, generator: torch.Generator
) -> list[TrainingBatch]:
    """The examples in random batches; pictures are seen here, so that an epoch only runs the decoder."""
    order = torch.randperm(len(examples), generator=generator).tolist()[: recipe.max_examples]
    batches = []
    for place, start in enumerate(range(0, len(order), recipe.batch_size)):
        chosen = tuple(examples[i] for i in order[start : start + recipe.batch_size])
        prepared = backbone.prepare(chosen, with_answer=True, embed=True, batch_size=len(chosen))
        batches.append(TrainingBatch(place, chosen, prepared))
    return batches


def answer_loss(backbone: Backbone, batch: TrainingBatch, injection: RowsInjection = None) -> Float[Tensor, ""]:
    """Mean negative log-likelihood of a batch's answer tokens, in nats."""
    scores = backbone.score(batch.prepared, injection)
    return scores.token_nll.sum() / scores.token_mask.sum()


def answer_logits(
    backbone: Backbone, batch: TrainingBatch
) -> tuple[Float[Tensor, "tokens vocabulary"], Int[Tensor, " tokens"]]:
    """Logits that predict a batch's answer tokens, all rows' one after another, and those tokens."""
    (only,) = batch.prepared.batches
    hidden = backbone.text_model(**(only.text_inputs or {}), use_cache=False).last_hidden_state
    where = only.answer_mask[:, 1:]
    logits = capped(backbone.model.get_output_embeddings()(hidden[:, :-1][where]), backbone.softcap)
    return logits.float(), only.inputs["input_ids"][:, 1:][where]


def fit(
    parameters: Iterable[nn.Parameter],
    batches: Sequence[TrainingBatch],
    loss: Loss,
    recipe: Recipe,
    generator: torch.Generator,
    progress: Progress,
    what: str,
) -> list[float]:
    """Trains `parameters` on the batches in a new order each epoch; returns the loss of every step.

    Args:
        loss: of one batch, penalties included.
        what: is being trained, for the progress display.

    Raises:
        TrainingDiverged: the loss of a batch is no finite number.
    """
    trained = list(parameters)
    blocks = side_by_side(trained)
    optimiser = torch.optim.AdamW(blocks, lr=recipe.learning_rate, weight_decay=0.0)
    steps = recipe.epochs * len(batches)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimiser, warm_up_cosine(steps, recipe.warm_up))
    losses: list[float] = []
    progress.start(what, steps)
    with torch.enable_grad():
        for _ in range(recipe.epochs):
            for place in torch.randperm(len(batches), generator=generator).tolist():
                value = loss(batches[place])
                if not bool(value.isfinite()):
                    raise TrainingDiverged(
                        f"{what}: after {len(losses)} of {steps} steps the loss is {float(value.detach())}; give the "
                        f"method a recipe with a learning rate below {recipe.learning_rate:g}"
                    )
                optimiser.zero_grad(set_to_none=False)
                value.backward()
                norm = nn.utils.get_total_norm([each.grad for each in trained if each.grad is not None])
                nn.utils.clip_grads_with_norm_(blocks, recipe.max_grad_norm, norm)
                optimiser.step()
                schedule.step()
                losses.append(float(value.detach()))
                progress.advance()
    progress.stop()
    return losses


@torch.no_grad()
def side_by_side(parameters: Sequence[nn.Parameter]) -> list[nn.Parameter]:
    """Moves parameters and their gradients (then zero) into one block for each dtype and device.

    They stay what they are, as views of the blocks: what an optimiser does to a block happens to them, to the last bit,
    in one step for all instead of some ten operations for each.
    """
    groups: dict[tuple[torch.dtype, torch.device], list[nn.Parameter]] = {}
    for parameter in parameters:
        groups.setdefault((parameter.dtype, parameter.device), []).append(parameter)
    blocks = []
    for group in groups.values():
        block = nn.Parameter(torch.cat([parameter.detach().flatten() for parameter in group]))
        block.grad = torch.zeros_like(block)
        sizes = [parameter.numel() for parameter in group]
        for parameter, values, gradient in zip(
            group, block.detach().split(sizes), block.grad.split(sizes), strict=True
        ):
            parameter.data = values.view(parameter.shape)
            parameter.grad = gradient.view(parameter.shape)
        blocks.append(block)
    return blocks


def warm_up_cosine(steps: int, warm_up: float) -> Callable[[int], float]:
    """Factor of the learning rate at each step: a linear rise, then half a cosine down to 0."""
    rising = max(1, round(steps * warm_up))

    def factor(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        return 0.5 * (1 + math.cos(math.pi * (step - rising) / max(1, steps - rising)))

    return factor
