"""How memory joins self-attention.

An attention function registered with transformers puts the memory's keys and values in front of a layer's own and
widens the mask; everything else about the model stays as it is, so a plain `generate(**inputs)` works (hf-facts 6.7).
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from inducekv.injection import Injection

if TYPE_CHECKING:
    from inducekv.backbone import Backbone

Provider = Callable[[dict[str, Any]], Injection | None]
ATTRIBUTE = "_inducekv_attachment"
REGISTERED = {"sdpa": "inducekv_sdpa", "eager": "inducekv_eager"}
NOT_THE_PROMPT = ("past_key_values", "use_cache", "cache_position", "labels", "logits_to_keep", "return_dict")


class Attachment:
    """What is attached while the context is open; `attached` yields it.

    Attributes:
        injection: what attention reads now, or None.
    """

    def __init__(self, injection: Injection | None, provider: Provider | None, record_mass: bool) -> None:
        self.injection = injection
        self.record_mass = record_mass
        self._provider = provider
        self._providing = False
        self._prompt: Tensor | None = None
        self._query_positions: Tensor | None = None
        self._mass: Tensor | None = None
        self._recorded = 0

    @property
    def mass(self) -> Float[Tensor, "rows slots"]:
        """Attention mass each slot took: mean over layers, heads and query positions since the last prefill.

        Raises:
            RuntimeError: `attached` was opened without `record_mass=True`, or nothing has run with a memory.
        """
        if self._mass is None:
            raise RuntimeError(
                "no attention mass recorded: open attached(..., record_mass=True) and run the model in it"
            )
        return self._mass / self._recorded

    def before_forward(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward-pre-hook of the whole model: ask the provider anew whenever a prompt is read."""
        if self._provider is None or self._providing:
            return
        past = kwargs.get("past_key_values")
        if past is not None and past.get_seq_length() > 0:
            return
        inputs = {k: v for k, v in kwargs.items() if k not in NOT_THE_PROMPT and not k.startswith("output_")}
        if args:
            inputs["input_ids"] = args[0]
        ids = inputs.get("input_ids")
        if kwargs.get("use_cache") is False and self._continues(ids):
            return  # generating without a cache: the same prompt, some tokens longer
        self._prompt = ids
        self._providing, self.injection = True, None
        try:
            self.injection = self._provider(inputs)
        finally:
            self._providing = False
        self._mass, self._recorded = None, 0

    def before_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Forward-pre-hook of a text decoder with sliding windows: note where the queries are."""
        positions = kwargs.get("position_ids")
        if positions is None:
            given = (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args)
            tokens = next(x for x in given if isinstance(x, Tensor))
            past = kwargs.get("past_key_values")
            before = 0 if past is None else past.get_seq_length()
            positions = torch.arange(before, before + tokens.shape[1], device=tokens.device)[None]
        self._query_positions = positions[0] if positions.dim() == 3 else positions

    def within(self, window: int, injection: Injection) -> Bool[Tensor, "batch 1 queries tokens"] | None:
        """Which memory tokens lie within a sliding window of each query; None where that does not matter."""
        if injection.positions is None or self._query_positions is None:
            return None
        queries, places = self._query_positions, injection.positions
        places = _expand(places, max(1, queries.shape[0] // places.shape[0])).to(queries.device)
        return (queries[:, :, None] - places[:, None] < window)[:, None]

    def _continues(self, ids: Tensor | None) -> bool:
        before = self._prompt
        if ids is None or before is None or ids.shape[0] != before.shape[0] or ids.shape[1] <= before.shape[1]:
            return False
        return bool(torch.equal(ids[:, : before.shape[1]], before))

    def record(self, mass: Float[Tensor, "batch tokens"], injection: Injection) -> None:
        """Add one layer's attention mass on each memory token."""
        rows = injection.mask.shape[0]
        mass = mass.view(rows, -1, mass.shape[-1]).mean(1).to(injection.slots.device)  # beams of a row
        slots = mass.new_zeros(rows, injection.slot_count).scatter_add(1, injection.slots, mass)
        self._mass = slots if self._mass is None else self._mass + slots
        self._recorded += 1


def _attend(
    base: Callable[..., Any],
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    mask: Tensor | None,
    **kwargs: Any,
) -> Any:
    """The base kernel over [memory; own]: `query` `[batch, heads, q, d]`, `key`, `value` `[batch, kv_heads, t, d]`."""
    attachment: Attachment | None = module.__dict__.get(ATTRIBUTE)
    injection = None if attachment is None else attachment.injection
    if attachment is None or injection is None:
        return base(module, query, key, value, mask, **kwargs)
    layer: int = module.layer_idx  # type: ignore[assignment]
    batch, _, length, _ = query.shape
    repeats = _repeats(batch, injection)
    memory_key, memory_value = (_expand(x[layer], repeats).to(key) for x in (injection.keys, injection.values))
    own = key.shape[2]
    key, value = torch.cat([memory_key, key], 2), torch.cat([memory_value, value], 2)
    if mask is None:  # the kernels' own meaning of no mask: one query sees all, several are causal from the top left
        mask = torch.ones(length, own, dtype=torch.bool, device=key.device).tril(0 if length > 1 else own)[None, None]
    visible = _expand(injection.mask, repeats).to(key.device)[:, None, None].expand(-1, 1, length, -1)
    if (window := kwargs.get("sliding_window")) and (near := attachment.within(window, injection)) is not None:
        visible = visible & near.to(key.device)
    mask = mask[..., :own].expand(batch, -1, -1, -1)
    if injection.bias is None and mask.dtype == torch.bool:
        mask = torch.cat([visible.expand(-1, mask.shape[1], -1, -1), mask], -1)
    else:
        lowest = max(torch.finfo(query.dtype).min, torch.finfo(torch.float32).min)  # eager softmax is float32
        if mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill(~mask, lowest)
        bias = (
            visible.new_zeros((), dtype=query.dtype)
            if injection.bias is None
            else _expand(injection.bias, repeats)[:, None, None].to(query)
        )
        front = torch.where(visible, bias, lowest)
        mask = torch.cat([front.expand(-1, mask.shape[1], -1, -1).to(mask.dtype), mask], -1)
    if attachment.record_mass:
        memory, scaling, softcap = memory_key.shape[2], kwargs.get("scaling"), kwargs.get("softcap")
        softcap = softcap if base is not sdpa_attention_forward else None  # which knows no such thing
        attachment.record(_memory_mass(query, key, mask, memory, scaling, softcap), injection)
    return base(module, query, key, value, mask, **kwargs)


def _repeats(batch: int, injection: Injection) -> int:
    rows = injection.mask.shape[0]
    if batch % rows:
        raise ValueError(
            f"the memory attached is for {rows} rows, the batch has {batch}; they must be equal or a multiple (beams)"
        )
    return batch // rows


def _expand(x: Tensor, repeats: int) -> Tensor:
    return x if repeats == 1 else x.repeat_interleave(repeats, 0)


@torch.no_grad()
def _memory_mass(
    query: Tensor, key: Tensor, mask: Tensor, memory: int, scaling: float | None, softcap: float | None
) -> Float[Tensor, "batch tokens"]:
    """Softmax weight on each memory token, mean over heads and over the query positions that are not padding."""
    groups = query.shape[1] // key.shape[1]
    logits = torch.matmul(query, key.repeat_interleave(groups, 1).transpose(2, 3)).float()
    logits = logits * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    if softcap is not None:
        logits = torch.tanh(logits / softcap) * softcap
    if mask.dtype == torch.bool:
        logits, shown = logits.masked_fill(~mask, torch.finfo(logits.dtype).min), mask
    else:
        logits, shown = logits + mask, mask > torch.finfo(mask.dtype).min / 2
    weights = logits.softmax(-1)[..., :memory].mean(1)
    real = shown[..., memory:].any(-1).any(1).to(weights.dtype)
    return (weights * real[..., None]).sum(1) / real.sum(-1, keepdim=True).clamp_min(1)


def inducekv_sdpa(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Any:
    """Torch's scaled dot-product attention, over memory too."""
    return _attend(sdpa_attention_forward, module, query, key, value, attention_mask, **kwargs)


def inducekv_eager(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Any:
    """The model file's own eager attention, over memory too."""
    base = sys.modules[type(module).__module__].eager_attention_forward
    return _attend(base, module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register("inducekv_sdpa", inducekv_sdpa)
AttentionInterface.register("inducekv_eager", inducekv_eager)
AttentionMaskInterface.register("inducekv_sdpa", sdpa_mask)
AttentionMaskInterface.register("inducekv_eager", eager_mask)


@contextmanager
def attached(
    backbone: "Backbone", memory: Injection | Provider | None, *, record_mass: bool = False, check: bool = False
) -> Iterator[Attachment]:
    """Let the model's text tower read `memory` while the context is open.

    `model.generate(**inputs)` and `model(**inputs)` then work as always: beams, left padding, static caches, a
    different memory for every row, gradients. Contexts may be nested (the inner one rules until it closes) and
    leave nothing behind, on exceptions too. For gradient checkpointing keep the context open through `backward()`.

    A forward pass over a left-padded batch needs `position_ids` that count real tokens from 0, as `generate` gives
    them: memory lies in front of position 0.

    Args:
        backbone: the model to attach to.
        memory: an `Injection` for the rows of the batches to come; or a function from the model's inputs to one,
            called whenever a prompt is read (None from it: the plain model); or None: the plain model.
        record_mass: also compute the attention mass of every slot (slower; see `Attachment.mass`).
        check: first compare memory with prompt tokens on this model, once in a process (`check.check_parity`).

    Raises:
        ParityError: the check failed.
        ValueError: the model's attention implementation is neither `sdpa` nor `eager`.
    """
    if check:
        from inducekv.check import check_parity  # which attaches in its turn

        check_parity(backbone)
    text = backbone.text_model
    before: str = text.config._attn_implementation
    plain = memory is None or before in REGISTERED.values()
    wanted = before if plain else REGISTERED.get(before)
    if wanted is None:
        raise ValueError(
            f"attention implementation {before!r} cannot read memory; "
            "load the model with attn_implementation='sdpa' or 'eager'"
        )
    provider = memory if not isinstance(memory, Injection) and callable(memory) else None
    attachment = Attachment(memory if isinstance(memory, Injection) else None, provider, record_mass)
    modules = [layer.self_attn for layer in text.layers]
    previous = [module.__dict__.get(ATTRIBUTE) for module in modules]
    hooks = []
    if provider:
        hooks.append(backbone.model.register_forward_pre_hook(attachment.before_forward, with_kwargs=True))
    if memory is not None and getattr(text.config, "sliding_window", None):
        hooks.append(text.register_forward_pre_hook(attachment.before_decoder, with_kwargs=True))
    try:
        if wanted != before:
            text.set_attn_implementation(wanted)
        for module in modules:
            module.__dict__[ATTRIBUTE] = attachment
        yield attachment
    finally:
        for hook in hooks:
            hook.remove()
        for module, outer in zip(modules, previous, strict=True):
            if outer is None:
                module.__dict__.pop(ATTRIBUTE, None)
            else:
                module.__dict__[ATTRIBUTE] = outer
        if wanted != before:
            text.set_attn_implementation(before)
