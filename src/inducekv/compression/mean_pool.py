"""The paper's compression: the whole example averaged into a fixed number of tokens."""

import dataclasses
from dataclasses import dataclass

from inducekv.compression.base import Compression, even_groups, group_kinds, pool_tokens
from inducekv.encoded import Encoded


@dataclass(frozen=True)
class MeanPool(Compression):
    """Pools all tokens, answer included, into `tokens` tokens (InduceKV, section 2: payload of fixed length m).

    How tokens are grouped is not public. CHOICE: successive groups of nearly equal size, keys averaged as they are in
    the canonical frame; the entry takes as many positions (`span`) as it has tokens, since pooled keys have no place of
    their own, and all entries of a memory must fit into the model's context. An example with no more than `tokens`
    tokens stays as it is.

    Attributes:
        tokens: m, at least 1.

    Raises:
        ValueError: `tokens` is below 1.
    """

    tokens: int = 8

    def __post_init__(self) -> None:
        if self.tokens < 1:
            raise ValueError(f"mean_pool needs payload_tokens of at least 1, got {self.tokens}")

    def compress(self, encoded: Encoded) -> Encoded:
        length = encoded.keys.shape[2]
        if length <= self.tokens:
            return encoded
        groups = even_groups(length, self.tokens)
        return dataclasses.replace(
            encoded,
            keys=pool_tokens(encoded.keys, groups, self.tokens),
            values=pool_tokens(encoded.values, groups, self.tokens),
            kinds=group_kinds(encoded.kinds, groups, self.tokens),
            span=self.tokens,
        )
