"""Keys and values of an entry as they lie in the file: quantised, token by token."""

from dataclasses import dataclass

import torch
from jaxtyping import Float, Int32, Num
from torch import Tensor

from inducekv.compression.storage import dequantise, quantise
from inducekv.config import PayloadDtype
from inducekv.encoded import Encoded
from inducekv.layer_lengths import Loaded, by_layer, of_layers


@dataclass(frozen=True)
class Payload:
    """Keys and values as they lie in the file.

    Attributes:
        keys, values: `[tokens, layers, kv_heads, stored]` in the storage dtype, `stored` elements for the `head_dim`
            numbers (`storage.stored_width`); keys in the canonical frame. With `layer_lengths` the `tokens · layers`
            places are filled layer by layer, what is left at the end with zeros.
        key_scales, value_scales: `[tokens, layers, kv_heads]` float16 for integer payloads, else None.
        dtype: number format (`payload_dtype`).
        head_dim: numbers of a head.
        layer_lengths: `[layers]` int32: tokens that each layer holds, at least one; None: `tokens` each.
    """

    keys: Num[Tensor, "tokens layers kv_heads stored"]
    values: Num[Tensor, "tokens layers kv_heads stored"]
    key_scales: Float[Tensor, "tokens layers kv_heads"] | None
    value_scales: Float[Tensor, "tokens layers kv_heads"] | None
    dtype: PayloadDtype | str
    head_dim: int
    layer_lengths: Int32[Tensor, "layers"] | None = None

    @property
    def tokens(self) -> int:
        """Tokens a layer, as far as bytes are concerned: their mean over the layers, rounded up."""
        return self.keys.shape[0]

    @classmethod
    def store(
        cls, encoded: Encoded, payload_dtype: PayloadDtype | str, layers: tuple[int, ...] | None = None
    ) -> "Payload":
        """Quantise an encoded example's keys and values.

        Args:
            encoded: the example, with keys and values of all layers.
            payload_dtype: number format to store them in.
            layers: the layers to keep, ascending; `None`: all.

        Raises:
            ValueError: unknown dtype, numbers that are not finite, no tokens, or layers that the example lacks.
        """
        if encoded.tokens == 0:
            raise ValueError("a payload needs at least one token")
        kept = slice(None) if layers is None else _checked_layers(layers, encoded.keys.shape[0])
        keys, values = (x.detach()[kept].cpu().permute(2, 0, 1, 3).contiguous() for x in (encoded.keys, encoded.values))
        lengths = None
        if encoded.layer_mask is not None:
            held = encoded.layer_mask[kept].cpu()
            lengths = held.sum(-1, dtype=torch.int32)
            keys, values = by_layer(keys, held), by_layer(values, held)
        stored_keys, stored_values = quantise(keys, payload_dtype), quantise(values, payload_dtype)
        scales = (stored_keys.scales, stored_values.scales)
        return cls(stored_keys.values, stored_values.values, *scales, payload_dtype, keys.shape[-1], lengths)

    def load(self) -> Loaded:
        """The numbers again, in float32."""
        keys = dequantise(self.keys, self.key_scales, self.dtype, self.head_dim)
        values = dequantise(self.values, self.value_scales, self.dtype, self.head_dim)
        if self.layer_lengths is None:
            return Loaded(keys.permute(1, 2, 0, 3), values.permute(1, 2, 0, 3), None)
        held = torch.arange(int(self.layer_lengths.max())) < self.layer_lengths[:, None]
        return Loaded(of_layers(keys, held), of_layers(values, held), held)


def _checked_layers(layers: tuple[int, ...], count: int) -> list[int]:
    if not layers or sorted(set(layers)) != list(layers) or layers[0] < 0 or layers[-1] >= count:
        raise ValueError(
            f"layers to store must be ascending, different and from 0 to {count - 1} (the example has {count} layers); "
            f"got {layers}"
        )
    return list(layers)
