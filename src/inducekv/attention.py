"""How memory joins self-attention.

An attention function registered with transformers puts the memory's keys and values in front of a layer's own and
widens the mask; everything else about the model stays as it is, so a plain `generate(**inputs)` works (hf-facts 6.7).
"""

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Float
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.flex_attention import flex_attention_forward
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import eager_mask, sdpa_mask

from inducekv.attachment import TRAVELS, Attachment, Pass, Provider, pass_of
from inducekv.attachment import Found as Found
from inducekv.attachment import InFlight as InFlight
from inducekv.attention_masks import repeats_of
from inducekv.calls import OwnHooks, followed, opened
from inducekv.fitting import check_fits
from inducekv.injection import Injection

if TYPE_CHECKING:
    from inducekv.backbone import Backbone

REGISTERED = {"sdpa": "inducekv_sdpa", "eager": "inducekv_eager", "flex_attention": "inducekv_flex"}


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
    pass_: Pass | None = kwargs.pop(TRAVELS, None) or pass_of(module)
    injection = None if pass_ is None else pass_.injection
    if pass_ is None or injection is None:
        return base(module, query, key, value, mask, **kwargs)
    layer: int = module.layer_idx  # type: ignore[assignment]
    memory = injection.of_layer(layer, key, repeats_of(query.shape[0], injection))
    if memory is None:
        return base(module, query, key, value, mask, **kwargs)
    mask = pass_.mask_for(layer, query, key.shape[2], mask, kwargs.get("sliding_window"))
    key, value = torch.cat([memory[0], key], 2), torch.cat([memory[1], value], 2)
    if pass_.record_mass:
        tokens, scaling, softcap = memory[0].shape[2], kwargs.get("scaling"), kwargs.get("softcap")
        softcap = softcap if base is not sdpa_attention_forward else None  # which knows no such thing
        pass_.record(_memory_mass(query, key, mask, tokens, scaling, softcap))
    return base(module, query, key, value, mask, **kwargs)


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


def inducekv_flex(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
) -> Any:
    """Flex attention, over memory too. Its mask is added to the logits: no blocks are skipped."""

    def base(module: nn.Module, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, **kwargs: Any) -> Any:
        if isinstance(mask, Tensor) and mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=query.dtype, device=mask.device).masked_fill_(
                ~mask, torch.finfo(query.dtype).min
            )
        return flex_attention_forward(module, query, key, value, mask, **kwargs)

    return _attend(base, module, query, key, value, attention_mask, **kwargs)


AttentionInterface.register("inducekv_sdpa", inducekv_sdpa)
AttentionInterface.register("inducekv_flex", inducekv_flex)
AttentionMaskInterface.register("inducekv_flex", eager_mask)
AttentionInterface.register("inducekv_eager", inducekv_eager)
AttentionMaskInterface.register("inducekv_sdpa", sdpa_mask)
AttentionMaskInterface.register("inducekv_eager", eager_mask)


@contextmanager
def attached(
    backbone: "Backbone",
    memory: Injection | Provider | InFlight | None,
    *,
    record_mass: bool = False,
    check: bool = False,
) -> Iterator[Attachment]:
    """Let the model's text tower read `memory` while the context is open.

    `model.generate(**inputs)` and `model(**inputs)` then work as always: beams, left padding, static caches, a
    different memory for every row, gradients. Contexts may be nested (the inner one rules until it closes) and
    leave nothing behind, on exceptions too. For gradient checkpointing keep the context open through `backward()`.

    A context is of the thread, or task, that opened it: other threads may use the model at the same time, with contexts
    of their own or none (a thread that is to share one runs in `contextvars.copy_context()`). A lookup is of one
    prompt: a call of `generate`, or a pass over a whole prompt and what follows it in its cache, token by token.

    A forward pass over a left-padded batch needs `position_ids` that count real tokens from 0, as `generate` gives
    them: memory lies in front of position 0.

    Args:
        backbone: the model to attach to.
        memory: an `Injection` for the rows of the batches to come; or a function from the model's inputs to one,
            called whenever a prompt is read (None from it: the plain model); or an `InFlight`, which finds it within
            the pass that reads the prompt; or None: the plain model.
        record_mass: also compute the attention mass of every slot (slower; see `Attachment.mass`).
        check: first compare memory with prompt tokens on this model, once in a process (`check.check_parity`).

    Raises:
        ParityError: the check failed.
        ValueError: the model's attention implementation is not `sdpa`, `eager` or `flex_attention`, or the memory does
            not fit the model (`fitting.check_fits`); while open, from the model: the rows of a batch are not those of
            the memory, prompt and memory together exceed the model's context, or where memory would be looked up a
            prompt goes on in a cache that was filled elsewhere, or comes in pieces.
    """
    if check:
        from inducekv.check import check_parity  # which attaches in its turn

        check_parity(backbone)
    text = backbone.text_model
    modules = [layer.self_attn for layer in text.layers]
    attachment = Attachment(memory, backbone.model, modules, record_mass, partial(check_fits, backbone=backbone))
    with ExitStack() as stack:
        if memory is not None:
            stack.enter_context(_reading(text))
            stack.enter_context(followed(backbone.model))
            hooks = OwnHooks(lambda: attachment.rules)
            stack.callback(hooks.remove)
            hooks.before(text, attachment.before_decoder)
            if isinstance(memory, InFlight):
                hooks.before(text.layers[memory.layer], attachment.before_key_layer)
        stack.enter_context(opened(attachment))
        yield attachment


_READING: WeakKeyDictionary[Any, tuple[str, int]] = WeakKeyDictionary()
"""Attention implementations to go back to, by text decoder, and how many contexts are open on it in all threads."""
_SWITCH = threading.Lock()


@contextmanager
def _reading(text: Any) -> Iterator[None]:
    """Keeps attention that can read memory on for as long as any thread has some attached to the decoder.

    Raises:
        ValueError: the decoder's attention cannot read memory.
    """
    with _SWITCH:
        before, count = _READING.get(text, (text.config._attn_implementation, 0))
        wanted = before if before in REGISTERED.values() else REGISTERED.get(before)
        if wanted is None:
            raise ValueError(
                f"attention implementation {before!r} cannot read memory; "
                "load the model with attn_implementation='sdpa' or 'eager' (or 'flex_attention')"
            )
        if not count and wanted != before:
            text.set_attn_implementation(wanted)
        _READING[text] = before, count + 1
    try:
        yield
    finally:
        with _SWITCH:
            before, count = _READING.pop(text)
            if count > 1:
                _READING[text] = before, count - 1
            elif text.config._attn_implementation != before:
                text.set_attn_implementation(before)
