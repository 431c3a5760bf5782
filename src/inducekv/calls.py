"""Calls of a model while something is open on it: whose they are, and one at a time.

What a thread opens (memory attached, a cache compressed) is in `OPEN` of that thread or task alone. A pass of the whole
model is told to what its own thread has open; a pass of another thread runs as if nothing were open. Generations, and
passes of the whole model, wait for one another: models keep things between the passes of a generation (Qwen-VL's
`rope_deltas`, a static cache).
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass
from functools import partial, wraps
from typing import Any, Protocol, runtime_checkable
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Num
from torch import Tensor, nn

from inducekv.cache_name import CACHE, CACHE_NAMES, cache_in, cache_of

OPEN: ContextVar[tuple[Any, ...]] = ContextVar("inducekv_open", default=())
"""What the present thread or task has open, the innermost last."""

BY_TOKEN = ("input_ids", "position_ids", "token_type_ids", "mm_token_type_ids", "cache_position")
"""Arguments of a model whose last axis is the tokens of the pass."""


@dataclass(eq=False)
class Generation:
    """One call of `generate`.

    Attributes:
        model: that was called.
        prompt: tokens it was given, None where that is not known.
        read: whether the model has begun to read them.
    """

    model: nn.Module
    prompt: int | None
    read: bool = False


_GENERATION: ContextVar[Generation | None] = ContextVar("inducekv_generation", default=None)


@runtime_checkable
class Follower(Protocol):
    """Something open that is told of the passes of a model."""

    model: Any

    def before_pass(self, inputs: dict[str, Any], generation: Generation | None) -> None:
        """Before a pass of the whole model; `inputs` are its arguments by name."""

    def after_pass(self, inputs: dict[str, Any], output: Any) -> None:
        """After it; `output` is None where it failed."""


# -- one at a time

_REGISTRY = threading.Lock()
_LOCKS: WeakKeyDictionary[Any, threading.RLock] = WeakKeyDictionary()


def lock_of(thing: Any) -> Any:
    """The re-entrant lock of a model (or whatever else only one thread may use at a time); nothing is left on it."""
    if thing is None:
        return nullcontext()
    with _REGISTRY:
        return _LOCKS.setdefault(thing, threading.RLock())


# -- what is open


@contextmanager
def opened(thing: Any) -> Iterator[None]:
    """Keeps `thing` in `OPEN` of this thread or task."""
    OPEN.set((*OPEN.get(), thing))
    try:
        yield
    finally:
        OPEN.set(tuple(other for other in OPEN.get() if other is not thing))


def is_open(thing: Any) -> bool:
    """Whether `thing` is in `OPEN` of this thread or task."""
    return any(other is thing for other in OPEN.get())


@contextmanager
def unfollowed() -> Iterator[None]:
    """While open, passes of this thread run as if nothing were open: passes of our own, such as for a key."""
    token = OPEN.set(())
    try:
        yield
    finally:
        OPEN.reset(token)


class OwnHooks:
    """Forward hooks that act while `active()` says so: on shared modules, for the thread that registered them."""

    def __init__(self, active: Callable[[], bool]) -> None:
        self._active, self._handles = active, list[Any]()

    def before(self, module: nn.Module, act: Callable[..., Any]) -> None:
        """`act(module, args, kwargs)` before the module's forward pass."""

        def hook(module: nn.Module, args: tuple[Any, ...], *kwargs: dict[str, Any]) -> Any:
            # without kwargs: another thread removed the hook after this one had begun to call the module's hooks
            return act(module, args, kwargs[0]) if kwargs and self._active() else None

        self._handles.append(module.register_forward_pre_hook(hook, with_kwargs=True))

    def after(self, module: nn.Module, act: Callable[..., Any]) -> None:
        """`act(module, args, kwargs, output)` after it."""

        def hook(module: nn.Module, args: tuple[Any, ...], *rest: Any) -> Any:
            return act(module, args, *rest) if len(rest) == 2 and self._active() else None

        self._handles.append(module.register_forward_hook(hook, with_kwargs=True))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


# -- passes and generations of a model

_FOLLOWED: WeakKeyDictionary[Any, int] = WeakKeyDictionary()


@contextmanager
def followed(model: Any) -> Iterator[None]:
    """While open, passes and generations of `model` are told to what their threads have open; nothing is left on it."""
    with _REGISTRY:
        _FOLLOWED[model] = _FOLLOWED.get(model, 0) + 1
        if _FOLLOWED[model] == 1:
            _replace(model)
    try:
        yield
    finally:
        with _REGISTRY:
            _FOLLOWED[model] -= 1
            if not _FOLLOWED[model]:
                del _FOLLOWED[model]
                _put_back(model)


def _replace(model: Any) -> None:
    for name, ours in _REPLACED.items():
        theirs = getattr(model, name, None)
        if theirs is not None:
            had = vars(model).get(name)
            around = wraps(theirs)(partial(ours, model, theirs))
            around.instead_of = had  # type: ignore[attr-defined]
            object.__setattr__(model, name, around)


def _put_back(model: Any) -> None:
    for name in _REPLACED:
        around = vars(model).get(name)
        if hasattr(around, "instead_of"):  # else someone replaced it in their turn
            del vars(model)[name]
            if around.instead_of is not None:
                object.__setattr__(model, name, around.instead_of)


def _generate(model: nn.Module, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with lock_of(model):
        token = _GENERATION.set(Generation(model, _prompt_tokens(args, kwargs)))
        try:
            return run(*args, **kwargs)
        finally:
            _GENERATION.reset(token)


def _prompt_tokens(args: tuple[Any, ...], kwargs: dict[str, Any]) -> int | None:
    given = (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), kwargs.get("inputs"), *args[:1])
    tokens = next((x for x in given if isinstance(x, Tensor)), None)
    return None if tokens is None or tokens.dim() < 2 or not tokens.shape[1] else tokens.shape[1]


def _forward(model: nn.Module, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    with lock_of(model):
        followers: list[Follower] = [thing for thing in OPEN.get() if getattr(thing, "model", None) is model]
        if not followers:
            return run(*args, **kwargs)
        generation = _GENERATION.get()
        if generation is not None and generation.model is not model:
            generation = None
        inputs = {**({"input_ids": args[0]} if args else {}), **kwargs}
        run = partial(_told, followers, generation, run)
        if generation is None or generation.read or held_by(cache_in(inputs)) or args:
            return run(args, kwargs, inputs)
        guesses = tokens_of(inputs).shape[1] - (generation.prompt or tokens_of(inputs).shape[1])
        return _in_two(run, kwargs, guesses) if guesses > 0 else run(args, kwargs, inputs)


def _told(
    followers: list[Follower],
    generation: Generation | None,
    run: Callable[..., Any],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    inputs: dict[str, Any],
) -> Any:
    for follower in followers:
        follower.before_pass(inputs, generation)
    if generation is not None:
        generation.read = True
    output = None
    try:
        output = run(*args, **kwargs)
    finally:
        for follower in reversed(followers):
            follower.after_pass(inputs, output)
    return output


def _init_continuous_batching(model: nn.Module, run: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    if any(getattr(thing, "model", None) is model for thing in OPEN.get()):
        raise ValueError(
            "continuous batching (generate_batch) runs in a thread and with attention of its own, where nothing that "
            "is open here is read; use generate() with a batch of prompts"
        )
    return run(*args, **kwargs)


_REPLACED = {
    "forward": _forward,
    "generate": _generate,
    "init_continuous_batching": _init_continuous_batching,
}
"""Methods of a model, and what takes their place while something is open on it."""


def tokens_of(inputs: dict[str, Any]) -> Num[Tensor, "rows tokens"]:
    """The tokens that a model is given: their ids, or one number of each of their embeddings."""
    ids = inputs.get("input_ids")
    tokens: Tensor = ids if ids is not None else inputs["inputs_embeds"][..., 0]
    return tokens


def held_by(cache: Any) -> int:
    """Tokens that a cache has seen."""
    return 0 if cache is None else int(cache.get_seq_length())


# -- assisted decoding


def _in_two(run: Callable[..., Any], kwargs: dict[str, Any], guesses: int) -> Any:
    """Reads the prompt, then the tokens that assisted decoding guesses after it.

    In one pass with the prompt they would be taken for its end: for its retrieval key, and for what is compressed.
    """
    first, rest = dict(kwargs), {}
    for name, value in kwargs.items():
        if name == "attention_mask":
            first[name], rest[name] = _mask_in_two(value, guesses)
        elif name in BY_TOKEN and isinstance(value, Tensor):
            first[name], rest[name] = value[..., :-guesses], value[..., -guesses:]
        elif name == "inputs_embeds" and value is not None:
            first[name], rest[name] = value[:, :-guesses], value[:, -guesses:]
        elif name == "logits_to_keep" and isinstance(value, int) and value:
            first[name], rest[name] = max(1, value - guesses), guesses
        elif not isinstance(value, Tensor | dict) and name not in CACHE_NAMES:
            rest[name] = value  # pictures are the prompt's
    start = run((), first, first)
    rest |= {CACHE: cache_in(kwargs) if cache_in(kwargs) is not None else cache_of(start)}
    end = run((), rest, rest)
    end["logits"] = torch.cat([start.logits, end.logits], 1)
    if getattr(end, "hidden_states", None):
        layers = zip(start.hidden_states, end.hidden_states, strict=True)
        end["hidden_states"] = tuple(torch.cat(both, 1) for both in layers)
    return end


def _mask_in_two(mask: Any, guesses: int) -> tuple[Any, Any]:
    if isinstance(mask, dict):
        parts = {name: _mask_in_two(value, guesses) for name, value in mask.items()}
        return {name: part[0] for name, part in parts.items()}, {name: part[1] for name, part in parts.items()}
    if mask is None:
        return None, None
    return (mask[:, :-guesses], mask) if mask.dim() == 2 else (mask[..., :-guesses, :-guesses], mask[..., -guesses:, :])
