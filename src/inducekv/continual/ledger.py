"""The byte ledger: what each method keeps, as formulas of the model's dimensions.

Deployed bytes are all that inference needs beyond the stock checkpoint; training bytes are carried from one task to the
next only to learn more (Fisher information, replay buffers). Both count the numbers and texts that a method's files
hold; the files' own headers (the safetensors index, the framing of JSON) are not counted, for any method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from torch import nn

from inducekv.backbone import Backbone

HALF = 2
"""Bytes of a deployed number: weights are float16."""
SINGLE = 4
"""Bytes of a number of training state: float32."""

_ATTENTION_IN = ("q_proj", "v_proj", "query", "value", "qkv_proj", "c_attn")

Shape = tuple[int, int]
"""In and out features of a linear."""


@dataclass(frozen=True)
class Ledger:
    """Bytes of one method, by formula.

    Attributes:
        deployed: needed to answer, beyond the stock checkpoint.
        training: needed only to learn more.
    """

    deployed: int
    training: int = 0


@dataclass(frozen=True)
class Dimensions:
    """Sizes of a text decoder that the formulas are made of.

    Attributes:
        layers, hidden_size, kv_heads, head_dim: as `Backbone` names them.
        linears: the linears inside the decoder's layers by their full name in the model, in the model's order.
    """

    layers: int
    hidden_size: int
    kv_heads: int
    head_dim: int
    linears: Mapping[str, Shape]

    @classmethod
    def of(cls, backbone: Backbone) -> Dimensions:
        """The dimensions of a backbone's text decoder."""
        inside = {
            id(module)
            for layer in backbone.text_model.layers
            for module in layer.modules()
            if isinstance(module, nn.Linear)
        }
        linears = {
            name: (module.in_features, module.out_features)
            for name, module in backbone.model.named_modules()
            if isinstance(module, nn.Linear) and id(module) in inside
        }
        return cls(backbone.layers, backbone.hidden_size, backbone.kv_heads, backbone.head_dim, linears)

    @property
    def kv_width(self) -> int:
        """Numbers in the keys and values of one token over all layers: 2 · L · K · h."""
        return 2 * self.layers * self.kv_heads * self.head_dim


def lora_numbers(shape: Shape) -> int:
    """Numbers that one rank of LoRA adds to a linear: a row of A and a column of B."""
    return sum(shape)


@dataclass(frozen=True)
class LoraSize:
    """Which linears get an adapter, and its rank.

    Attributes:
        modules: full names of the linears.
        rank: of every adapter.
        nbytes: of all of them in float16.
    """

    modules: tuple[str, ...]
    rank: int
    nbytes: int


def solve_size(
    linears: Mapping[str, Shape],
    budget: int,
    *,
    per_rank: Callable[[Shape], int] = lora_numbers,
    fixed: Callable[[Shape], int] = lambda shape: 0,
    multiple: int = 1,
) -> LoraSize:
    """The widest coverage and then the highest rank whose float16 adapters fit in `budget` bytes.

    Tried in order: every linear; the attention's query and value linears; those of ever fewer layers, from the last;
    any single linear.

    Args:
        linears: name -> (in features, out features), in the model's order.
        per_rank: numbers that one rank takes on a linear.
        fixed: numbers that an adapter takes on a linear whatever its rank.
        multiple: the rank is a multiple of this (experts, or tasks with a part each).

    Raises:
        ValueError: not even the smallest adapter fits; names the smallest budget that works.
    """
    query_value = [name for name in linears if name.rpartition(".")[2] in _ATTENTION_IN]
    coverages: list[Sequence[str]] = [list(linears), *(query_value[start:] for start in range(len(query_value)))]
    coverages += [[name] for name in reversed(list(linears))]
    smallest = []
    for modules in filter(None, coverages):
        slope = HALF * sum(per_rank(linears[name]) for name in modules)
        start = HALF * sum(fixed(linears[name]) for name in modules)
        widest = max(min(linears[name]) for name in modules) // multiple * multiple
        if widest == 0:
            continue
        smallest.append(start + multiple * slope)
        rank = min((budget - start) // (multiple * slope) * multiple, widest)
        if rank >= multiple:
            return LoraSize(tuple(modules), rank, start + rank * slope)
    if not smallest:
        raise ValueError(f"no linear of the model is wide enough for an adapter of rank {multiple}")
    raise ValueError(
        f"a budget of {budget} bytes is too small for an adapter of rank {multiple}; "
        f"the smallest that works is {min(smallest)}"
    )


def adapter_nbytes(
    size: LoraSize,
    linears: Mapping[str, Shape],
    *,
    per_rank: Callable[[Shape], int] = lora_numbers,
    fixed: Callable[[Shape], int] = lambda shape: 0,
    width: int = HALF,
) -> int:
    """Bytes of adapters of one size: width · Σ (rank · per_rank + fixed) over their linears."""
    return width * sum(size.rank * per_rank(linears[name]) + fixed(linears[name]) for name in size.modules)


def count_that_fits(what: str, each: int, budget: int, least: int = 1) -> int:
    """How many items of `each` bytes fit.

    Raises:
        ValueError: fewer than `least` do; names the smallest budget that works.
    """
    count = budget // each
    if count < least:
        raise ValueError(
            f"a budget of {budget} bytes is too small for {least} {what} of {each} bytes; "
            f"the smallest that works is {least * each}"
        )
    return count


def texts_nbytes(texts: Iterable[str]) -> int:
    """UTF-8 bytes of texts."""
    return sum(len(text.encode()) for text in texts)
