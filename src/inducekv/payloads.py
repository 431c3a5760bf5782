"""Payloads of many entries side by side, ready to be gathered: what an injection is built from."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from inducekv.encoded import Encoded


@dataclass(frozen=True)
class Payloads:
    """Keys and values of several entries, padded to the longest.

    Attributes:
        keys, values: `[entries, layers, kv_heads, tokens, head_dim]`; keys in each entry's canonical frame (its last
            position is -1); zeros where padded.
        mask: `[entries, tokens]` True at real tokens.
        spans: `[entries]` positions each entry occupies.
        layer_mask: `[entries, layers, tokens]` True where a layer holds a token; None: every layer holds all real ones.
    """

    keys: Float[Tensor, "entries layers kv_heads tokens head_dim"]
    values: Float[Tensor, "entries layers kv_heads tokens head_dim"]
    mask: Bool[Tensor, "entries tokens"]
    spans: Int[Tensor, "entries"]
    layer_mask: Bool[Tensor, "entries layers tokens"] | None = None

    def __len__(self) -> int:
        return len(self.spans)

    @property
    def layers(self) -> tuple[int, ...] | None:
        """None: payloads by themselves are of all layers (see `PayloadSource`)."""
        return None

    def payloads(self, indices: Int[Tensor, "chosen"]) -> "Payloads":
        """Some of the entries, in the order of `indices`, without padding that none of them needs."""
        mask = self.mask[indices]
        tokens = int(mask.any(0).nonzero().amax()) + 1 if mask.any() else 0
        return Payloads(
            self.keys[indices, :, :, :tokens],
            self.values[indices, :, :, :tokens],
            mask[:, :tokens],
            self.spans[indices],
            None if self.layer_mask is None else self.layer_mask[indices][:, :, :tokens],
        )

    def to(self, device: torch.device | str, dtype: torch.dtype) -> "Payloads":
        """The same payloads on another device, in another floating dtype."""
        return Payloads(
            self.keys.to(device, dtype),
            self.values.to(device, dtype),
            self.mask.to(device),
            self.spans.to(device),
            None if self.layer_mask is None else self.layer_mask.to(device),
        )

    @classmethod
    def stack(
        cls,
        keys: Sequence[Float[Tensor, "layers kv_heads _ head_dim"]],
        values: Sequence[Float[Tensor, "layers kv_heads _ head_dim"]],
        spans: Sequence[int],
        layer_masks: Sequence[Bool[Tensor, "layers _"] | None] = (),
    ) -> "Payloads":
        """Pad entries of different lengths to one block.

        Raises:
            ValueError: no entry, or not as many values and spans as keys.
        """
        if not keys or not len(keys) == len(values) == len(spans):
            raise ValueError(
                f"need as many keys as values and spans, at least one; got {len(keys)}, {len(values)}, {len(spans)}"
            )
        longest = max(key.shape[2] for key in keys)
        layers, heads, _, width = keys[0].shape
        device = keys[0].device
        block_keys = keys[0].new_zeros(len(keys), layers, heads, longest, width)
        block_values = values[0].new_zeros(len(keys), layers, heads, longest, width)
        mask = torch.zeros(len(keys), longest, dtype=torch.bool, device=device)
        for row, (key, value) in enumerate(zip(keys, values, strict=True)):
            tokens = key.shape[2]
            block_keys[row, :, :, :tokens], block_values[row, :, :, :tokens], mask[row, :tokens] = key, value, True
        by_layer = None
        if any(one is not None for one in layer_masks):
            by_layer = mask[:, None].repeat(1, layers, 1)
            for row, one in enumerate(layer_masks):
                if one is not None:
                    by_layer[row, :, : one.shape[1]] = one.to(device)
        return cls(block_keys, block_values, mask, torch.tensor(spans, dtype=torch.long, device=device), by_layer)

    @classmethod
    def of(cls, encoded: Sequence[Encoded]) -> "Payloads":
        """Payloads of encoded (and perhaps compressed) examples."""
        return cls.stack(
            [e.keys for e in encoded],
            [e.values for e in encoded],
            [e.span for e in encoded],
            [e.layer_mask for e in encoded],
        )


@runtime_checkable
class PayloadSource(Protocol):
    """Anything that can hand out payloads by index: `Payloads` themselves, or a `KVMemory`.

    Attributes:
        layers: the model's layers that the payloads are of; None: all of them.
    """

    @property
    def layers(self) -> tuple[int, ...] | None: ...

    def payloads(self, indices: Int[Tensor, "chosen"]) -> Payloads: ...
