"""What the hooks of live compression share while a prompt is read: who reads, what, and where its tokens are."""

from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor, nn

from inducekv.attention_masks import real_tokens
from inducekv.cache_name import cache_in
from inducekv.compression.layer import CompressedLayer
from inducekv.compression.prompt import LayerPrompt
from inducekv.families import Family, family_of


@dataclass
class PromptReading:
    """What the hooks share while a context is open."""

    family: Family
    model: Any
    text_model: Any
    layers: int
    ids: Tensor | None = None
    given_mask: Any = None
    real: Bool[Tensor, "batch tokens"] | None = None
    position_ids: Int[Tensor, "axes _ tokens"] | None = None
    past: int = 0
    now: tuple[CompressedLayer, Tensor | None, Any] | None = None
    projected: Tensor | None = None
    prompts: list[LayerPrompt] = field(default_factory=list)
    measures: list[Tensor] = field(default_factory=list)

    def before_model(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self.ids = kwargs.get("input_ids", args[0] if args else None)
        self.given_mask = kwargs.get("attention_mask", args[1] if len(args) > 1 else None)

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
        assert self.position_ids is not None
        positions = self.position_ids.to(hidden.device).expand(-1, batch, -1)
        index: int = module.layer_idx  # type: ignore[assignment]
        return LayerPrompt(
            index,
            self.layers,
            layer.keys,
            layer.values,
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


def shared_hooks(reading: PromptReading) -> list[Any]:
    """Hooks that note what prompt is being read."""
    hooks = [reading.text_model.register_forward_pre_hook(reading.before_decoder, with_kwargs=True)]
    if reading.model is not reading.text_model:
        hooks.append(reading.model.register_forward_pre_hook(reading.before_model, with_kwargs=True))
    return hooks
