"""What is attached to a model while a context is open: when memory is looked up, and what attention reads then."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from inducekv.attention_masks import expanded, real_tokens, repeats_of, widened_mask
from inducekv.cache_name import CACHE_NAMES, cache_in
from inducekv.injection import Injection

Provider = Callable[[dict[str, Any]], Injection | None]
ATTRIBUTE = "_inducekv_attachment"
NOT_THE_PROMPT = (*CACHE_NAMES, "use_cache", "cache_position", "labels", "logits_to_keep", "return_dict")


@dataclass(frozen=True)
class InFlight:
    """Memory that is looked up in the middle of the pass that reads the prompt (CHOICE: the paper runs a pass more).

    Attributes:
        layer: decoder layer whose input gives the retrieval key; it and those above it can read what is found.
        provide: from that input `[rows, tokens, hidden]`, where it is no padding `[rows, tokens]`, and the token ids
            `[rows, tokens]` (None if the model was given embeddings) to the injection, or None.
    """

    layer: int
    provide: Callable[
        [Float[Tensor, "rows tokens hidden"], Bool[Tensor, "rows tokens"], Int[Tensor, "rows tokens"] | None],
        Injection | None,
    ]


class Attachment:
    """What is attached while the context is open; `attached` yields it.

    Attributes:
        injection: what attention reads now, or None.
    """

    def __init__(
        self,
        memory: Injection | Provider | InFlight | None,
        modules: list[Any],
        record_mass: bool,
        check: Callable[[Injection], None],
    ) -> None:
        self.injection = memory if isinstance(memory, Injection) else None
        self._check = check
        if self.injection is not None:
            check(self.injection)
        self.record_mass = record_mass
        self._in_flight = memory if isinstance(memory, InFlight) else None
        self._provider = memory if callable(memory) else None
        self._modules = modules
        self._context = _context_of(modules)
        self._providing = False
        self._awaited: Bool[Tensor, "rows tokens"] | None = None
        self._prompt: Tensor | None = None
        self._query_positions: Tensor | None = None
        self._mass: Tensor | None = None
        self._recorded = 0
        self._masks: dict[Any, tuple[Tensor | None, Tensor]] = {}

    @property
    def mass(self) -> Float[Tensor, "rows slots"]:
        """Attention mass each slot took: mean over reading layers, heads and query positions since the last prefill.

        Raises:
            RuntimeError: `attached` was opened without `record_mass=True`, or nothing has run with a memory.
        """
        if self._mass is None:
            raise RuntimeError(
                "no attention mass recorded: open attached(..., record_mass=True) and run the model in it"
            )
        return self._mass / self._recorded

    @property
    def rules(self) -> bool:
        """Whether this is the innermost of the contexts open on the model."""
        return self._modules[0].__dict__.get(ATTRIBUTE) is self

    def before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward-pre-hook of the whole model: look up memory anew whenever a prompt is read."""
        if self._providing or not self.rules:
            return
        past = cache_in(kwargs)
        if past is not None and past.get_seq_length() > 0:
            return
        inputs = {k: v for k, v in kwargs.items() if k not in NOT_THE_PROMPT and not k.startswith("output_")}
        if args:
            inputs["input_ids"] = args[0]
        ids = inputs.get("input_ids")
        if kwargs.get("use_cache") is False and self._continues(ids):
            return  # generating without a cache: the same prompt, some tokens longer
        self._prompt = ids
        self._mass, self._recorded, self.injection = None, 0, None
        tokens = ids if ids is not None else inputs["inputs_embeds"][..., 0]
        mask = inputs.get("attention_mask")
        real = real_tokens(mask, tokens)
        if self._in_flight is not None:
            self._awaited = real
            return
        if mask is not None and not (isinstance(mask, Tensor) and mask.dim() == 2):  # made for a static cache
            inputs["attention_mask"] = real.long()
        self._providing = True
        try:
            assert self._provider is not None
            self.injection = self._checked(self._provider(inputs), real)
        finally:
            self._providing = False

    def before_key_layer(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward-pre-hook of the key layer: look up memory in flight."""
        real, self._awaited = self._awaited, None
        if real is None or self._in_flight is None or not self.rules:
            return
        hidden = args[0] if args else kwargs["hidden_states"]
        self.injection = self._checked(self._in_flight.provide(hidden, real.to(hidden.device), self._prompt), real)

    def _checked(self, injection: Injection | None, real: Bool[Tensor, "rows tokens"]) -> Injection | None:
        if injection is None:
            return None
        self._check(injection)
        repeats_of(len(real), injection)
        tokens = int(real.sum(-1).amax())
        if self._context is not None and tokens + injection.span > self._context:
            raise ValueError(
                f"the prompt has {tokens} tokens and the memory takes {injection.span} positions before it: together "
                f"more than the {self._context} that the model's context holds; shorten the prompt, lower top_k, or "
                "learn with smaller pictures or questions"
            )
        return injection

    def before_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward-pre-hook of the text decoder: note where the queries are."""
        positions = kwargs.get("position_ids")
        if positions is None:
            given = (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args)
            tokens = next(x for x in given if isinstance(x, Tensor))
            past = cache_in(kwargs)
            before = 0 if past is None else past.get_seq_length()
            positions = torch.arange(before, before + tokens.shape[1], device=tokens.device)[None]
        self._query_positions = positions[0] if positions.dim() == 3 else positions
        self._masks.clear()

    def _near(self, window: int | None) -> Bool[Tensor, "batch 1 queries tokens"] | None:
        """Which memory tokens lie within a sliding window of each query; None where that does not matter."""
        injection = self.injection
        if not window or injection is None or injection.positions is None or self._query_positions is None:
            return None
        queries, places = self._query_positions, injection.positions
        places = expanded(places, max(1, queries.shape[0] // places.shape[0])).to(queries.device)
        return (queries[:, :, None] - places[:, None] < window)[:, None]

    def _reading(self) -> Bool[Tensor, "batch 1 queries 1"] | None:
        """Which queries read memory; None: all. Those of the preamble do not (`Injection.guard`)."""
        injection = self.injection
        if injection is None or injection.guard is None or self._query_positions is None:
            return None
        queries, guard = self._query_positions, injection.guard
        guard = expanded(guard, max(1, queries.shape[0] // len(guard))).to(queries.device)
        return (queries >= guard[:, None])[:, None, :, None]

    def _continues(self, ids: Tensor | None) -> bool:
        before = self._prompt
        if ids is None or before is None or ids.shape[0] != before.shape[0] or ids.shape[1] <= before.shape[1]:
            return False
        return bool(torch.equal(ids[:, : before.shape[1]], before))

    def mask_for(self, layer: int, query: Tensor, own: int, mask: Tensor | None, window: int | None) -> Tensor:
        """The mask over [memory; own]; made once for all the layers that are given the same one."""
        injection = self.injection
        assert injection is not None
        read = injection.visible(layer)
        if injection.layer_mask is not None or (injection.bias is not None and injection.bias.requires_grad):
            return widened_mask(injection, read, query, own, mask, self._near(window), self._reading())
        key = (window, own, query.shape[2], query.shape[0], query.dtype, query.device, id(injection))
        known = self._masks.get(key)
        if known is None or known[0] is not mask:
            self._masks = {k: v for k, v in self._masks.items() if k[1:] == key[1:]}  # of this forward pass alone
            made = widened_mask(injection, read, query, own, mask, self._near(window), self._reading())
            known = self._masks[key] = (mask, made)
        return known[1]

    def record(self, mass: Float[Tensor, "batch tokens"], injection: Injection) -> None:
        """Add one layer's attention mass on each memory token."""
        rows = injection.mask.shape[0]
        mass = mass.view(rows, -1, mass.shape[-1]).mean(1).to(injection.slots.device)  # beams of a row
        slots = mass.new_zeros(rows, injection.slot_count).scatter_add(1, injection.slots, mass)
        self._mass = slots if self._mass is None else self._mass + slots
        self._recorded += 1


def _context_of(modules: list[Any]) -> int | None:
    """Positions that the model was made for."""
    context = getattr(getattr(modules[0], "config", None), "max_position_embeddings", None)
    return int(context) if context else None
