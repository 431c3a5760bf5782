"""What the hooks of live compression share while a prompt is read: who reads, what, and where its tokens are."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from inducekv.attention_masks import real_tokens
from inducekv.cache_name import cache_in
from inducekv.calls import OPEN, Generation, OwnHooks, followed, opened
from inducekv.compression.layer import CompressedLayer
from inducekv.compression.prompt import LayerPrompt
from inducekv.families import Family, family_of


@dataclass(eq=False)
class PromptReading:
    """What the hooks share while a context is open in a thread: passes of the whole model come one at a time."""

    family: Family
    model: Any
    text_model: Any
    layers: int
    method: Any = None
    ids: Tensor | None = None
    given_mask: Any = None
    real: Bool[Tensor, "batch tokens"] | None = None
    position_ids: Int[Tensor, "axes _ tokens"] | None = None
    past: int = 0
    now: tuple[CompressedLayer, Tensor | None, Any] | None = None
    projected: Tensor | None = None
    prompts: list[LayerPrompt] = field(default_factory=list)
    measures: list[Tensor] = field(default_factory=list)

    def before_pass(self, inputs: dict[str, Any], generation: Generation | None) -> None:
        """Before a pass of the whole model."""
        self.ids, self.given_mask = inputs.get("input_ids"), inputs.get("attention_mask")

    def after_pass(self, inputs: dict[str, Any], output: Any) -> None:
        """After it."""
        self.ids = self.given_mask = None

    def before_decoder(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.prompts, self.measures = [], []
        cache = cache_in(kwargs)
        self.past = 0 if cache is None else int(cache.get_seq_length())
        if self.past:
            return
        given = (kwargs.get("inputs_embeds"), kwargs.get("input_ids"), *args)
        tokens = next(x for x in given if isinstance(x, Tensor))
        batch, length = tokens.shape[:2]
        mask = self.given_mask if isinstance(self.given_mask, Tensor) else kwargs.get("attention_mask")
        token_places = torch.zeros(batch, length, device=tokens.device)
        self.real = real_tokens(mask, token_places).to(tokens.device)
        positions = kwargs.get("position_ids")
        if positions is None:
            positions = torch.arange(length, device=tokens.device)[None]
        self.position_ids = positions.reshape(-1, *positions.shape[-2:])[-3:]

    def prompt(self, module: nn.Module, hidden: Tensor, kwargs: dict[str, Any], layer: Any, output: Any) -> LayerPrompt:
        """What is known of one layer, after its attention."""
        assert self.real is not None
        if not bool(self.real[:, -1].all()):
            raise ValueError("compression needs batches padded on the left (processor.tokenizer.padding_side = 'left')")
        batch = hidden.shape[0]
        real = self.real.to(hidden.device)
        image = None if self.family.image_token is None else int(getattr(self.model.config, self.family.image_token))
        images = torch.zeros_like(real)
        if image is not None and self.ids is not None and self.ids.shape == real.shape:
            images = self.ids.to(hidden.device) == image
        keys, values = layer.keys, layer.values
        if layer.is_sliding:  # assisted decoding makes these layers hold more than they read
            keys, values = (x[:, :, -layer.sliding_window + 1 :] for x in (keys, values))
        assert self.position_ids is not None
        positions = self.position_ids.to(hidden.device).expand(-1, batch, -1)
        index: int = module.layer_idx  # type: ignore[assignment]
        return LayerPrompt(
            index,
            self.layers,
            keys,
            values,
            real,
            images,
            positions,
            hidden,
            output[1] if isinstance(output, tuple) else None,
            module,
            self.text_model,
            kwargs,
        )


def prompt_reading(model: nn.Module) -> PromptReading:
    """
    Raises:
        ValueError: the family is not supported, or its attention takes no mask of a compressed cache.
    """
    family = family_of(model)
    text = family.text(model)
    kernel = str(text.config._attn_implementation)
    if not kernel.endswith(("sdpa", "eager")):
        raise ValueError(
            f"attention implementation {kernel!r} takes no mask for a compressed cache; "
            "load the model with attn_implementation='sdpa' or 'eager'"
        )
    return PromptReading(family, model, text, len(text.layers))


def arguments_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Any]:
    """The hidden states and the cache that an attention module was called with."""
    hidden = kwargs["hidden_states"] if "hidden_states" in kwargs else args[0]
    return hidden, cache_in(kwargs)


@contextmanager
def following(reading: PromptReading) -> Iterator[OwnHooks]:
    """While open, notes what prompt this thread reads; more hooks may be added to those that do so."""
    hooks = OwnHooks(lambda: _innermost(reading.model) is reading)
    hooks.before(reading.text_model, reading.before_decoder)
    try:
        with followed(reading.model), opened(reading):
            yield hooks
    finally:
        hooks.remove()


def _innermost(model: Any) -> PromptReading | None:
    """What this thread has opened last on a model (a measure while encoding, inside an open compression)."""
    return next((x for x in reversed(OPEN.get()) if isinstance(x, PromptReading) and x.model is model), None)
