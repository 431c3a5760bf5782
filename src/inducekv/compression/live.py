"""Compressing the cache of a generation while it runs: the hooks that every live method shares.

The prompt is read as ever. Right after a layer's attention has read it, the layer's keys and values are replaced by
what the method keeps; later tokens find a mask cut down to that, and go on at the prompt's true positions. All is done
by hooks on the attention modules, so that any attention function, memory attached or not, works unchanged.
"""

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import Cache
from transformers.cache_utils import DynamicLayer

from inducekv.cache_name import cache_in, cache_of
from inducekv.calls import OPEN
from inducekv.compression.base import Compression
from inducekv.compression.layer import CompressedLayer, Seen, kept_from
from inducekv.compression.prompt import LayerPrompt
from inducekv.compression.queries import RotaryTables, as_queries
from inducekv.compression.reading import PromptReading, arguments_of, following, prompt_reading
from inducekv.encoded import Encoded

if TYPE_CHECKING:
    from inducekv.backbone import Backbone

Positions = Int[Tensor, "batch kv_heads kept"] | None
"""Places among the stored tokens that stay, ascending, -1 for unused slots; None: all of them."""


@dataclass(frozen=True)
class LiveCompression(Compression):
    """A method that compresses the cache of a live generation: `with method(model): model.generate(**inputs)`.

    A method says in three steps what becomes of a prompt: `measure` looks at each layer right after its attention;
    `choose` decides which tokens stay; `store` makes the cache layer.

    The object holds no state between calls, and one may serve several models at once.
    """

    @property
    def whole_prompt(self) -> bool:
        """Whether `choose` needs the measures of all layers at once; until then all of them keep their full cache."""
        return False

    @abstractmethod
    def measure(self, prompt: LayerPrompt) -> Float[Tensor, "batch kv_heads stored"]:
        """How much each stored token matters (higher: keep)."""

    @abstractmethod
    def choose(self, prompts: list[LayerPrompt], measures: list[Tensor]) -> list[Positions]:
        """Which tokens of each layer stay. One layer at a time, in order, unless `whole_prompt`."""

    def store(self, prompt: LayerPrompt, measure: Tensor, chosen: Positions) -> DynamicLayer | None:
        """The layer's new cache; None leaves the layer as it is."""
        if chosen is None:
            return None
        keys, values = kept_from(prompt.keys, prompt.values, chosen)
        places = torch.where(chosen >= 0, chosen + prompt.offset, -1)
        return CompressedLayer(keys, values, places, prompt.tokens, sliding_window=prompt.sliding_window)

    @property
    def scorer(self) -> "LiveCompression | None":
        return self

    def compress(self, encoded: Encoded) -> Encoded:
        raise TypeError(f"{type(self).__name__} compresses live caches only, not payloads")

    def __call__(self, model: "nn.Module | Backbone") -> AbstractContextManager[None]:
        """While open, every prompt that `model` reads leaves a compressed cache behind.

        `generate` works as always: greedy, sampling, beams, batches padded on the left, several pictures. A prompt read
        in chunks is compressed after its first one. Tokens that follow the prompt are kept whole. Contexts of other
        compressions may not be nested; `attached` (memory) may, either way round, and memory is not compressed. A
        context is of the thread that opened it. A cache that was compressed can be read in such a context alone.

        Raises:
            ValueError: the model's family is not supported, another compression is open on it, its attention is
                neither `sdpa` nor `eager`, or (while generating) a batch is padded on the right or the cache is static;
            afterwards, from the model: a compressed cache is read outside.
        """
        whole = getattr(model, "model", model) if hasattr(model, "text_model") else model
        return _compressing(self, whole)  # type: ignore[arg-type]

    def measuring(self, model: "nn.Module | Backbone") -> AbstractContextManager[list[Tensor]]:
        """While open, the measures of every layer of the prompt read last, `[batch, kv_heads, tokens]` each.

        Caches stay whole: this is how payloads get their `Encoded.scores`.
        """
        whole = getattr(model, "model", model) if hasattr(model, "text_model") else model
        return _measuring(self, whole)  # type: ignore[arg-type]


@contextmanager
def _compressing(method: LiveCompression, model: nn.Module) -> Iterator[None]:
    reading = prompt_reading(model)
    reading.method = method
    for other in OPEN.get():
        if isinstance(other, PromptReading) and other.method is not None and other.model is model:
            raise ValueError(f"{other.method!r} compresses this model already; nest the methods, not the contexts")

    def cut_mask(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        hidden, cache = arguments_of(args, kwargs)
        index: int = module.layer_idx  # type: ignore[assignment]
        if cache is None or index >= len(cache.layers) or not reading.past:
            return None
        layer, mask = cache.layers[index], kwargs.get("attention_mask")
        if isinstance(layer, CompressedLayer):
            layer.expected = True
            heads = reading.text_model.config.num_attention_heads
            mask = layer.mask(mask, hidden.shape[1], heads, hidden.device)
            reading.now, reading.projected = (layer, mask, kwargs.get("position_embeddings")), None
            return args, {**kwargs, "attention_mask": mask}
        if mask is not None and layer.is_sliding:  # whose mask may have been made for a compressed layer's length
            stored = layer.get_mask_sizes(_query_length(hidden, kwargs))[0]
            return args, {**kwargs, "attention_mask": mask[..., -stored:]}
        return None

    def keep_projected(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> None:
        if reading.now is not None and reading.projected is None:
            reading.projected = output

    def merge(attention: nn.Module, projection: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """Before the output projection of a layer: add what the layer remembers of evicted tokens."""
        if reading.now is None:
            return None
        (layer, mask, tables), reading.now = reading.now, None
        projected, reading.projected = reading.projected, None
        width = layer.keys.shape[-1]
        output = args[0].unflatten(-1, (-1, width)).transpose(1, 2)

        def queries() -> Tensor:
            assert projected is not None
            made = as_queries(attention, projected, width).transpose(1, 2)
            return RotaryTables.of(reading.text_model, attention.layer_idx, tables).turn(made)  # type: ignore[arg-type]

        scaling = float(getattr(attention, "scaling", None) or width**-0.5)
        merged = layer.merged(output, queries, Seen(scaling, mask))
        return None if merged is None else ((merged.transpose(1, 2).flatten(2).to(args[0].dtype), *args[1:]), kwargs)

    def compress(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        hidden, cache = arguments_of(args, kwargs)
        if cache is None or reading.past:
            return
        index: int = module.layer_idx  # type: ignore[assignment]
        layer = cache.layers[index]
        if not isinstance(layer, DynamicLayer):
            raise ValueError(
                f"a {type(layer).__name__} cannot be compressed; use the dynamic cache that generate() makes itself"
            )
        prompt = reading.prompt(module, hidden, kwargs, layer, output)
        measure = method.measure(prompt)
        if not method.whole_prompt:
            _replace(cache, method, [prompt], [measure])
            return
        reading.prompts.append(replace(prompt, hidden=None, weights=None, arguments=_only_positions(kwargs)))
        reading.measures.append(measure)

    def compress_all(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        cache = cache_in(kwargs)
        cache = cache_of(output) if cache is None else cache
        if reading.prompts and cache is not None:
            _replace(cache, method, reading.prompts, reading.measures)
        reading.prompts, reading.measures = [], []

    with following(reading) as hooks:
        for module in (layer.self_attn for layer in reading.text_model.layers):
            hooks.before(module, cut_mask)
            hooks.after(module, compress)
            hooks.after(module.qkv_proj if hasattr(module, "qkv_proj") else module.q_proj, keep_projected)
            hooks.before(module.o_proj, partial(merge, module))
        hooks.after(reading.text_model, compress_all)
        yield


@contextmanager
def _measuring(method: LiveCompression, model: nn.Module) -> Iterator[list[Tensor]]:
    reading = prompt_reading(model)

    def measure(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        hidden, cache = arguments_of(args, kwargs)
        if cache is not None and not reading.past:
            index: int = module.layer_idx  # type: ignore[assignment]
            reading.measures.append(method.measure(reading.prompt(module, hidden, kwargs, cache.layers[index], output)))

    measures: list[Tensor] = []
    with following(reading) as hooks:
        for layer in reading.text_model.layers:
            hooks.after(layer.self_attn, measure)
        hooks.after(reading.text_model, lambda *_: measures.__setitem__(slice(None), reading.measures))
        yield measures


def _replace(cache: Cache, method: LiveCompression, prompts: list[LayerPrompt], measures: list[Tensor]) -> None:
    chosen = method.choose(prompts, measures)
    for prompt, measure, positions in zip(prompts, measures, chosen, strict=True):
        made = method.store(prompt, measure, positions)
        if made is not None:
            cache.layers[prompt.layer] = made


def _only_positions(kwargs: dict[str, Any]) -> dict[str, Any]:
    return {name: kwargs[name] for name in ("position_embeddings",) if name in kwargs}


def _query_length(hidden: Tensor, kwargs: dict[str, Any]) -> Any:
    """New tokens as this release's `get_mask_sizes` takes them."""
    position = kwargs.get("cache_position")
    return hidden.shape[1] if position is None else position
