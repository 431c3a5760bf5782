"""Reaching the text decoder: what the whole model would hand to it, and what comes out of it."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import attrgetter
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, Int8
from torch import Tensor, nn

from inducekv.cache_name import CACHE_NAMES
from inducekv.calls import OwnHooks, is_open, lock_of, opened, unfollowed
from inducekv.encoded import ANSWER, IMAGE, TEXT
from inducekv.families import Family
from inducekv.rendering import Batch

_NOT_KEPT = (*CACHE_NAMES, "use_cache", "cache_position", "return_dict")


class _Reached(Exception):
    """Ends a pass of our own at a module, with the arguments that it was called with."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments


def _arguments_at(module: nn.Module, first: str, run: Callable[[], Any]) -> dict[str, Any] | None:
    """What a module is called with in the pass `run()`, which ends there; None: it is not called.

    Passes of other threads, meanwhile, go on through the module. `first`: name of its positional argument.
    """
    mine = object()

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        raise _Reached({**({first: args[0]} if args else {}), **kwargs})

    hooks = OwnHooks(lambda: is_open(mine))
    hooks.before(module, stop)
    try:
        with unfollowed(), opened(mine):
            run()
    except _Reached as reached:
        return reached.arguments
    finally:
        hooks.remove()
    return None


@torch.no_grad()
def text_inputs(model: Any, family: Family, inputs: dict[str, Any]) -> dict[str, Any]:
    """Everything before the text decoder (vision tower, embeddings, positions): run the model, stop at its door.

    Args:
        model: the whole model.
        family: its row in the table.
        inputs: of the whole model, `attention_mask` `[rows, tokens]` among them.

    Returns:
        Arguments of the text decoder: `inputs_embeds` (or `input_ids` of a text-only model), `attention_mask`,
        `position_ids` and whatever else the family passes.

    Raises:
        ValueError: the model never calls the decoder that its family names.
    """
    arguments = dict(inputs)
    if "position_ids" not in arguments:
        positions = family.positions(inputs)
        arguments |= {} if positions is None else {"position_ids": positions}
    reached = _arguments_at(family.text(model), "input_ids", lambda: model(**arguments, use_cache=False))
    if reached is None:
        raise ValueError(f"the {type(model).__name__} never called its text decoder {family.text_model!r}")
    passed = {k: v for k, v in reached.items() if v is not None and not k.startswith("output_")}
    kept = {k: v for k, v in passed.items() if k not in _NOT_KEPT}
    mask = passed.get("attention_mask")  # one mask for each kind of layer, where token types decide what is seen
    made = isinstance(mask, dict) or (isinstance(mask, Tensor) and mask.dim() == 4)
    return {**kept, "attention_mask": mask if made else inputs["attention_mask"]}


@contextmanager
def state_kept(model: Any, family: Family) -> Iterator[None]:
    """Keeps the model to this thread, and puts back what it remembers between calls (Qwen-VL's rope_deltas)."""
    with lock_of(model):
        paths = [path.rpartition(".") for path in family.state]
        owners = [(attrgetter(owner)(model), name) for owner, _, name in paths]
        values = [getattr(owner, name, None) for owner, name in owners]
        try:
            yield
        finally:
            for (owner, name), value in zip(owners, values, strict=True):
                setattr(owner, name, value)


def chosen_key_layer(key_layer: int | None, layers: int) -> int:
    """The hidden state that gives the retrieval key; None is the middle one, rounded down.

    CHOICE: the last is shaped by the next token, the first have not yet brought picture and question together.

    Raises:
        ValueError: `key_layer` is neither -1 (the last) nor between 0 and `layers`.
    """
    if key_layer is None:
        return layers // 2
    if key_layer == -1:
        return layers
    if not 0 <= key_layer <= layers:
        raise ValueError(
            f"key_layer must be between 0 and {layers} for this model, or -1 for the last; got {key_layer}"
        )
    return key_layer


@contextmanager
def tapped(text_model: Any, key_layer: int | None) -> Iterator[Callable[[Any], Float[Tensor, "rows tokens hidden"]]]:
    """While open, catches the decoder's hidden state `key_layer`; call what is given with the output to get it.

    The last state is taken after the final norm. A hook of our own, because `output_hidden_states` would leave hooks of
    transformers on the model for good.

    Raises:
        ValueError: as `chosen_key_layer`.
    """
    layers = text_model.layers
    chosen = chosen_key_layer(key_layer, len(layers))
    if chosen == len(layers):
        yield lambda output: output.last_hidden_state
        return
    caught: list[Tensor] = []

    def catch(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        caught[:] = [args[0] if args else kwargs["hidden_states"]]

    hooks = OwnHooks(lambda: is_open(caught))
    hooks.before(layers[chosen], catch)
    try:
        with opened(caught):
            yield lambda output: caught[0]
    finally:
        hooks.remove()


@torch.no_grad()
def state_of(text_model: Any, key_layer: int | None, inputs: dict[str, Any]) -> Float[Tensor, "rows tokens hidden"]:
    """The decoder's hidden state `key_layer` of its `inputs`; layers above it do not run.

    Raises:
        ValueError: as `chosen_key_layer`.
    """
    layers = text_model.layers
    chosen = chosen_key_layer(key_layer, len(layers))
    if chosen == len(layers):
        state: Tensor = text_model(**inputs, use_cache=False).last_hidden_state
        return state

    reached = _arguments_at(layers[chosen], "hidden_states", lambda: text_model(**inputs, use_cache=False))
    if reached is None:
        raise ValueError(f"the {type(text_model).__name__} never called its layer {chosen}")
    found: Tensor = reached["hidden_states"]
    return found


def kinds_of(batch: Batch, image_token: int | None) -> Int8[Tensor, "rows tokens"]:
    """`TEXT`, `IMAGE` or `ANSWER` for every token of a batch (padding is `TEXT`)."""
    ids = batch.inputs["input_ids"]
    kinds = torch.full_like(ids, TEXT, dtype=torch.int8)
    if image_token is not None:
        kinds[ids == image_token] = IMAGE
    kinds[batch.answer_mask] = ANSWER
    return kinds


def extent(
    positions: Int[Tensor, "*axes _ tokens"] | None, real: Bool[Tensor, "rows tokens"]
) -> tuple[Int[Tensor, "rows"], Int[Tensor, "rows"]]:
    """First and last position of each row's real tokens, over all axes of the position ids (None: 0, 1, ...)."""
    if positions is None:
        positions = torch.arange(real.shape[1], device=real.device)[None]
    axes = positions.expand(*positions.shape[:-2], *real.shape).reshape(-1, *real.shape)
    far = torch.iinfo(axes.dtype).max
    return axes.masked_fill(~real, far).amin((0, 2)), axes.masked_fill(~real, -1).amax((0, 2))
