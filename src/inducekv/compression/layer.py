"""Cache layers that hold fewer tokens than they have seen, and say so to nobody but attention."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import DynamicLayer


@dataclass(frozen=True)
class Seen:
    """How attention saw the stored tokens: its scaling, and its mask `[batch, heads, queries, stored]` or None."""

    scaling: float
    mask: Tensor | None


class CompressedLayer(DynamicLayer):
    """What is left of a prompt in one layer, with the tokens generated since behind it.

    The length it reports is that of everything it has seen, so that positions go on from the prompt's true end; masks
    made for that length are cut down to what is stored by `mask`.

    Attributes:
        keys, values: `[batch, kv_heads, kept + new, head_dim]`.
        positions: `[batch, kv_heads, kept]` int32: the place in the prompt of each kept token; -1 marks a slot that a
            row does not use (rows of a batch may keep different numbers of tokens).
        prompt: tokens the prompt had, padding included.
        expected: whether the hooks of a compression have seen that attention is about to read the layer; without them
            `update` raises ValueError.
    """

    is_croppable = True

    def __init__(
        self,
        keys: Float[Tensor, "batch kv_heads stored head_dim"],
        values: Float[Tensor, "batch kv_heads stored head_dim"],
        positions: Int[Tensor, "batch kv_heads kept"],
        prompt: int,
        *,
        sliding_window: int | None = None,
    ) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values
        self.positions, self.prompt = positions.to(torch.int32), prompt
        self.is_sliding, self.sliding_window = sliding_window is not None, sliding_window
        self.new = 0
        self.expected = False

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.expected:
            raise ValueError(
                "this cache is compressed, and attention is not told which of its tokens are left: go on generating "
                "inside the context that compressed it (`with method(model): ...`), or give generate() a new cache"
            )
        self.expected = False
        self.new += key_states.shape[-2]
        return super().update(key_states, value_states)

    def get_seq_length(self, *args: Any) -> int:
        return self.prompt + self.new

    def get_mask_sizes(self, query_length: Any, *args: Any) -> tuple[int, int]:
        new = query_length.shape[0] if isinstance(query_length, Tensor) else query_length  # cache_position before 5.4
        return self.get_seq_length() + int(new), 0

    @property
    def stored_bytes(self) -> int:
        """Bytes of everything this layer keeps."""
        return sum(x.numel() * x.element_size() for x in self.tensors())

    def tensors(self) -> list[Tensor]:
        """Every tensor this layer keeps."""
        return [x for x in (self.keys, self.values, self.positions) if x is not None]

    def merged(
        self, output: Float[Tensor, "batch heads queries head_dim"], queries: Callable[[], Tensor], seen: "Seen"
    ) -> Float[Tensor, "batch heads queries head_dim"] | None:
        """Attention's output with what else the layer remembers (methods that keep a state); None: nothing else.

        Args:
            output: of attention over the kept tokens, before the output projection.
            queries: makes the queries, `[batch, heads, queries, head_dim]`, after rotary embedding.
            seen: how attention saw the kept tokens.
        """
        return None

    def mask(self, mask: Tensor | None, queries: int, heads: int, device: torch.device) -> Tensor | None:
        """A mask over all tokens seen, cut down to those stored here.

        Args:
            mask: `[batch, 1 or heads, queries, seen or the last of them]`, bool or added to logits; None: causal.
            queries: new tokens.
            heads: query heads.

        Returns:
            `[batch, heads, queries, stored + queries]`, or None where nothing is hidden.
        """
        seen = self.get_seq_length() + queries
        if mask is None:
            if queries == 1 and not bool((self.positions < 0).any()):
                return None
            places = torch.arange(seen, device=device)
            mask = (places[None, :] <= places[seen - queries :, None])[None, None]
        places = self.positions.to(device=mask.device, dtype=torch.long) - (seen - mask.shape[-1])
        hidden = False if mask.dtype == torch.bool else torch.finfo(mask.dtype).min
        groups = heads // places.shape[1]
        places = places.repeat_interleave(groups, 1)[:, :, None].expand(-1, -1, queries, -1)
        mask = mask.expand(places.shape[0], heads, queries, -1)
        kept = mask.gather(-1, places.clamp_min(0)).masked_fill(places < 0, hidden)
        return torch.cat([kept, mask[..., mask.shape[-1] - self.new - queries :]], -1)

    # -- what generation does to rows and lengths

    def reorder_cache(self, beam_idx: Tensor) -> None:
        self._rows(lambda x: x.index_select(0, beam_idx.to(x.device)))

    def batch_repeat_interleave(self, repeats: int) -> None:
        self._rows(lambda x: x.repeat_interleave(repeats, 0))

    def batch_select_indices(self, indices: Tensor) -> None:
        self._rows(lambda x: x[indices.to(x.device)])

    def _rows(self, change: Any) -> None:
        assert self.keys is not None and self.values is not None
        self.keys, self.values = change(self.keys), change(self.values)
        self.positions = change(self.positions)

    def crop(self, max_length: int) -> None:
        """Forget the newest tokens: `-max_length` of them, or (older releases) all beyond `max_length`.

        Raises:
            ValueError: that would reach into the prompt, which is compressed already.
        """
        remove = -max_length if max_length <= 0 else max(0, self.get_seq_length() - max_length)
        if remove > self.new:
            raise ValueError(
                f"a compressed cache can forget the {self.new} tokens generated since the prompt, not {remove}"
            )
        if remove:
            assert self.keys is not None and self.values is not None
            self.keys, self.values = self.keys[..., :-remove, :], self.values[..., :-remove, :]
            self.new -= remove

    def reset(self) -> None:
        raise ValueError("a compressed cache cannot be emptied and used again; give generate() a new one")


@runtime_checkable
class Prefix(Protocol):
    """A compressed prompt that is not kept as keys and values."""

    def dense(self) -> tuple[Tensor, Tensor]:
        """Keys and values `[batch, kv_heads, kept, head_dim]` for attention."""

    def tensors(self) -> list[Tensor]:
        """Every tensor that is kept."""

    def rows(self, change: Callable[[Tensor], Tensor]) -> "Prefix":
        """The same with other rows: `change` picks them from a tensor whose first axis is the batch."""


class CodedLayer(CompressedLayer):
    """A prompt kept as codes, decoded whenever attention reads it; the tokens since are in `keys` and `values`."""

    def __init__(
        self,
        prefix: Prefix,
        empty: Float[Tensor, "batch kv_heads 0 head_dim"],
        positions: Int[Tensor, "batch kv_heads kept"],
        prompt: int,
        *,
        sliding_window: int | None = None,
    ) -> None:
        super().__init__(empty, empty, positions, prompt, sliding_window=sliding_window)
        self.prefix = prefix

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        new = super().update(key_states, value_states)
        kept = self.prefix.dense()
        keys, values = (torch.cat([old.to(x), x], 2) for old, x in zip(kept, new, strict=True))
        return keys, values

    def tensors(self) -> list[Tensor]:
        return [*super().tensors(), *self.prefix.tensors()]

    def _rows(self, change: Any) -> None:
        super()._rows(change)
        self.prefix = self.prefix.rows(change)


def kept_from(
    keys: Float[Tensor, "batch kv_heads tokens head_dim"],
    values: Float[Tensor, "batch kv_heads tokens head_dim"],
    chosen: Int[Tensor, "batch kv_heads kept"],
) -> tuple[Tensor, Tensor]:
    """Keys and values of the chosen tokens (-1: an unused slot, zeros)."""
    index = chosen.clamp_min(0)[..., None]
    used = (chosen >= 0)[..., None]
    taken = (x.gather(2, index.expand(-1, -1, -1, x.shape[-1])) * used.to(x.dtype) for x in (keys, values))
    return tuple(taken)  # type: ignore[return-value]


def highest(
    scores: Float[Tensor, "batch kv_heads tokens"], real: Bool[Tensor, "batch tokens"], counts: Int[Tensor, " batch"]
) -> Int[Tensor, "batch kv_heads kept"]:
    """The `counts` highest-scored real tokens of every row and KV head, in the prompt's order.

    Of equal scores the later token stays. Rows that keep fewer than the longest have -1 in front.
    """
    length = scores.shape[-1]
    scores = scores.masked_fill(~real[:, None], -torch.inf)
    order = length - 1 - scores.flip(-1).sort(dim=-1, descending=True, stable=True).indices
    chosen = order[..., : int(counts.max())]
    unused = torch.arange(chosen.shape[-1], device=chosen.device)[None, None] >= counts.to(chosen.device)[:, None, None]
    return chosen.masked_fill(unused, -1).sort(-1).values


def cache_bytes(cache: Cache) -> int:
    """Bytes of all tensors in a cache, compressed or not; what layers share counts once."""
    kept = {}
    for layer in cache.layers:
        tensors = layer.tensors() if isinstance(layer, CompressedLayer) else [layer.keys, layer.values]
        kept.update({(x.data_ptr(), x.shape): x for x in tensors if x is not None and x.numel()})
    return sum(x.numel() * x.element_size() for x in kept.values())
