"""What is attached to a model while a context is open: when memory is looked up, and what attention reads then."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import Cache

from inducekv.attention_masks import expanded, real_tokens, repeats_of, widened_mask
from inducekv.cache_name import CACHE_NAMES, cache_in, cache_of
from inducekv.calls import OPEN, Generation, held_by, tokens_of, unfollowed
from inducekv.injection import Injection
from inducekv.lengths import context_of

TRAVELS = "inducekv_pass"
"""Argument of a text decoder that its layers hand on to attention."""
NOT_THE_PROMPT = (*CACHE_NAMES, "use_cache", "cache_position", "labels", "logits_to_keep", "return_dict")


@dataclass(frozen=True)
class Found:
    """What was looked up for a prompt.

    Attributes:
        injection: what attention reads, or None.
        details: whatever else the one who looked it up wants to be reminded of (`Attachment.details`).
    """

    injection: Injection | None
    details: Any = None


Provider = Callable[[dict[str, Any]], Injection | Found | None]


@dataclass(frozen=True)
class InFlight:
    """Memory that is looked up in the middle of the pass that reads the prompt (CHOICE: the paper runs a pass more).

    Attributes:
        layer: decoder layer whose input gives the retrieval key; it and those above it can read what is found.
        provide: from that input `[rows, tokens, hidden]`, where it is no padding `[rows, tokens]`, and the token ids
            `[rows, tokens]` (None if the model was given embeddings) to what is read, as a provider gives it.
    """

    layer: int
    provide: Callable[
        [Float[Tensor, "rows tokens hidden"], Bool[Tensor, "rows tokens"], Int[Tensor, "rows tokens"] | None],
        Injection | Found | None,
    ]


@dataclass(eq=False)
class _Prompt:
    """A prompt and what it reads, for as long as its cache or its `generate` goes on.

    Attributes:
        tokens: of the prompt.
        found: what was looked up.
        cached: whether its tokens went into a cache.
        mass, recorded: attention mass of each slot, summed over so many records.
    """

    tokens: int = 0
    found: Found = Found(None)
    cached: bool = False
    mass: Tensor | None = None
    recorded: int = 0


@dataclass(eq=False)
class Pass:
    """One forward pass.

    Attributes:
        prompt: that it belongs to.
        record_mass: whether attention mass is computed.
        running: whether the whole model is at it.
        awaited: where the prompt is no padding, until memory is looked up in flight.
        ids: token ids for that.
        positions: `[rows, queries]` of the queries.
        masks: by what they were made of.
    """

    prompt: _Prompt
    record_mass: bool
    running: bool = True
    awaited: Bool[Tensor, "rows tokens"] | None = None
    ids: Tensor | None = None
    positions: Tensor | None = None
    masks: dict[Any, tuple[Tensor | None, Tensor]] = field(default_factory=dict)

    @property
    def injection(self) -> Injection | None:
        """What attention reads, or None."""
        return self.prompt.found.injection

    def _near(self, window: int | None) -> Bool[Tensor, "batch 1 queries tokens"] | None:
        """Which memory tokens lie within a sliding window of each query; None where that does not matter."""
        injection, queries = self.injection, self.positions
        if not window or injection is None or injection.positions is None or queries is None:
            return None
        places = injection.positions
        places = expanded(places, max(1, queries.shape[0] // places.shape[0])).to(queries.device)
        return (queries[:, :, None] - places[:, None] < window)[:, None]

    def _reading(self) -> Bool[Tensor, "batch 1 queries 1"] | None:
        """Which queries read memory; None: all. Those of the preamble do not (`Injection.guard`)."""
        injection, queries = self.injection, self.positions
        if injection is None or injection.guard is None or queries is None:
            return None
        guard = expanded(injection.guard, max(1, queries.shape[0] // len(injection.guard))).to(queries.device)
        return (queries >= guard[:, None])[:, None, :, None]

    def mask_for(self, layer: int, query: Tensor, own: int, mask: Tensor | None, window: int | None) -> Tensor:
        """The mask over [memory; own]; made once for all the layers that are given the same one."""
        injection = self.injection
        assert injection is not None
        read = injection.visible(layer)
        if injection.layer_mask is not None or (injection.bias is not None and injection.bias.requires_grad):
            return widened_mask(injection, read, query, own, mask, self._near(window), self._reading())
        key = (window, own, query.shape[2], query.shape[0], query.dtype, query.device, id(injection))
        known = self.masks.get(key)
        if known is None or known[0] is not mask:
            made = widened_mask(injection, read, query, own, mask, self._near(window), self._reading())
            known = self.masks[key] = (mask, made)
        return known[1]

    def record(self, mass: Float[Tensor, "batch tokens"]) -> None:
        """Add one layer's attention mass on each memory token."""
        prompt, injection = self.prompt, self.injection
        assert injection is not None
        rows = injection.mask.shape[0]
        mass = mass.view(rows, -1, mass.shape[-1]).mean(1).to(injection.slots.device)  # beams of a row
        slots = mass.new_zeros(rows, injection.slot_count).scatter_add(1, injection.slots, mass)
        prompt.mass = slots if prompt.mass is None else prompt.mass + slots
        prompt.recorded += 1


class Attachment:
    """What is attached while the context is open; `attached` yields it.

    A pass of the model belongs to the thread that runs it, and what is looked up to a prompt: to its cache, or to the
    call of `generate` that reads it. Properties speak of the prompt that was read last.
    """

    def __init__(
        self,
        memory: Injection | Provider | InFlight | None,
        model: Any,
        modules: list[Any],
        record_mass: bool,
        check: Callable[[Injection], None],
    ) -> None:
        self._check = check
        self.model = model
        self.record_mass = record_mass
        self._in_flight = memory if isinstance(memory, InFlight) else None
        self._provider = memory if callable(memory) else None
        self._looks_up = self._in_flight is not None or self._provider is not None
        self._modules = modules
        self._context = context_of(modules[0])
        self._given = _Prompt(found=Found(memory)) if isinstance(memory, Injection) else _Prompt()
        if isinstance(memory, Injection):
            check(memory)
        self._of_cache: WeakKeyDictionary[Any, _Prompt] = WeakKeyDictionary()
        self._of_generation: WeakKeyDictionary[Generation, _Prompt] = WeakKeyDictionary()
        self._of_thread = threading.local()
        self._last = Pass(self._given, record_mass, running=False)

    @property
    def injection(self) -> Injection | None:
        """What attention reads, or None."""
        return self._last.prompt.found.injection

    @property
    def details(self) -> Any:
        """The details of what was looked up (`Found.details`)."""
        return self._last.prompt.found.details

    @property
    def mass(self) -> Float[Tensor, "rows slots"]:
        """Attention mass each slot took: mean over reading layers, heads and query positions since the last prefill.

        Raises:
            RuntimeError: `attached` was opened without `record_mass=True`, or nothing has run with a memory.
        """
        prompt = self._last.prompt
        if prompt.mass is None:
            raise RuntimeError(
                "no attention mass recorded: open attached(..., record_mass=True) and run the model in it"
            )
        return prompt.mass / prompt.recorded

    @property
    def rules(self) -> bool:
        """Whether this is the innermost of the contexts that the present thread has open on the model."""
        return innermost(self._modules[0]) is self

    def owns(self, module: Any) -> bool:
        """Whether an attention module is one of the model's."""
        place = getattr(module, "layer_idx", -1)
        return 0 <= place < len(self._modules) and self._modules[place] is module

    @property
    def now(self) -> Pass:
        """The pass that the present thread runs, or else (gradient checkpointing runs layers again) the last one."""
        return getattr(self._of_thread, "pass_", self._last)

    @property
    def _query_positions(self) -> Int[Tensor, "rows queries"] | None:
        return self.now.positions

    def _begin(self, prompt: _Prompt) -> None:
        self._of_thread.pass_ = self._last = Pass(prompt, self.record_mass)

    def before_pass(self, inputs: dict[str, Any], generation: Generation | None) -> None:
        """Before a pass of the whole model: look up memory wherever a prompt begins."""
        if not self._looks_up or not self.rules:
            return
        tokens = tokens_of(inputs)
        known = None if generation is None else self._of_generation.get(generation)
        past = cache_in(inputs)
        if past is not None and held_by(past):
            self._begin(self._continued(past, tokens.shape[1], generation, known))
            return
        if known is not None and not known.cached and tokens.shape[1] > known.tokens:
            self._begin(known)  # generating without a cache: the same prompt, some tokens longer
            return
        given = None if generation is None or generation.read else generation.prompt
        if given is not None and tokens.shape[1] < given:
            raise ValueError(
                f"the prompt of {given} tokens is read in pieces, the first of {tokens.shape[1]}: memory is looked up "
                "for a whole prompt; leave out prefill_chunk_size, or attach no memory"
            )
        prompt = _Prompt(tokens.shape[1])
        if generation is not None and known is None:
            self._of_generation[generation] = prompt
        self._begin(prompt)
        real = real_tokens(inputs.get("attention_mask"), tokens)
        if self._in_flight is not None:
            self.now.awaited, self.now.ids = real, inputs.get("input_ids")
        else:
            self._look_up(prompt, inputs, real)

    def _continued(self, past: Any, tokens: int, generation: Generation | None, known: _Prompt | None) -> _Prompt:
        """The prompt that a cache was filled with."""
        prompt = self._of_cache.get(past, known)
        if generation is not None and known is None:
            raise ValueError(
                f"generate was given a cache that holds {held_by(past)} tokens already: memory is looked up where a "
                "prompt begins; give the whole conversation without the cache, or attach no memory"
            )
        if prompt is None:
            raise ValueError(
                f"the cache holds {held_by(past)} tokens that were not read in this context, so what they read is not "
                "known; read the whole prompt in the context, or attach no memory"
            )
        if generation is None and tokens > 1:
            raise ValueError(
                f"{tokens} tokens follow a cache of {held_by(past)}: memory is looked up for a whole prompt, not for "
                "pieces of one; read it in one pass, then token by token, or use generate()"
            )
        return prompt

    def _look_up(self, prompt: _Prompt, inputs: dict[str, Any], real: Bool[Tensor, "rows tokens"]) -> None:
        assert self._provider is not None
        given = {k: v for k, v in inputs.items() if k not in NOT_THE_PROMPT and not k.startswith("output_")}
        mask = given.get("attention_mask")
        if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):  # made for a static cache
            given["attention_mask"] = real.long()
        with unfollowed():
            prompt.found = self._checked(self._provider(given), real)

    def after_pass(self, inputs: dict[str, Any], output: Any) -> None:
        """After a pass of the whole model: its prompt goes on where its cache does."""
        pass_ = self.now
        if not self._looks_up or not pass_.running or not self.rules:
            return
        pass_.running = False
        if output is None:
            return
        values = output if isinstance(output, tuple) else (cache_in(inputs), cache_of(output))
        for cache in values:
            if isinstance(cache, Cache):
                self._of_cache[cache], pass_.prompt.cached = pass_.prompt, True

    def before_key_layer(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Before the key layer: look up memory in flight."""
        pass_ = self.now
        real, pass_.awaited = pass_.awaited, None
        if real is None or self._in_flight is None:
            return
        hidden = args[0] if args else kwargs["hidden_states"]
        with unfollowed():
            pass_.prompt.found = self._checked(self._in_flight.provide(hidden, real.to(hidden.device), pass_.ids), real)

    def _checked(self, found: Injection | Found | None, real: Bool[Tensor, "rows tokens"]) -> Found:
        found = found if isinstance(found, Found) else Found(found)
        injection = found.injection
        if injection is None:
            return found
        self._check(injection)
        repeats_of(len(real), injection)
        tokens = int(real.sum(-1).amax())
        if self._context is not None and tokens + injection.span > self._context:
            raise ValueError(
                f"the prompt has {tokens} tokens and the memory takes {injection.span} positions before it: together "
                f"more than the {self._context} that the model's context holds; shorten the prompt, lower top_k, or "
                "learn with smaller pictures or questions"
            )
        return found

    def before_decoder(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before every pass of the text decoder: note where the queries are."""
        if not self._looks_up:
            self._begin(self._given)
        elif not self.now.running:
            raise ValueError(
                "memory is looked up when the whole model reads a prompt, but a part of it was called; call the model "
                "itself or its generate()"
            )
        positions = kwargs.get("position_ids")
        if positions is None:
            given = (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args)
            tokens = next(x for x in given if isinstance(x, Tensor))
            before = held_by(cache_in(kwargs))
            positions = torch.arange(before, before + tokens.shape[1], device=tokens.device)[None]
        self.now.positions = positions[0] if positions.dim() == 3 else positions
        self.now.masks.clear()
        if module.training and torch.is_grad_enabled():
            return args, {**kwargs, TRAVELS: self.now}  # checkpointing runs layers again, maybe in another thread
        return None


def innermost(module: Any) -> Attachment | None:
    """The innermost of the contexts that the present thread has open on the model of an attention module."""
    return next((x for x in reversed(OPEN.get()) if isinstance(x, Attachment) and x.owns(module)), None)


def pass_of(module: Any) -> Pass | None:
    """The pass that an attention module is called in; None: nothing is attached."""
    attachment = innermost(module)
    return None if attachment is None else attachment.now
