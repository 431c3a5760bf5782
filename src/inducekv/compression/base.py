"""What every compression method has in common: a payload goes in, one with fewer tokens comes out."""

import dataclasses
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from inducekv.config import PayloadDtype
from inducekv.encoded import Encoded

if TYPE_CHECKING:
    from inducekv.compression.live import LiveCompression


@dataclasses.dataclass(frozen=True)
class Compression(ABC):
    """Makes the payload of one encoded example smaller along its tokens.

    A method gets keys and values `[layers, kv_heads, tokens, head_dim]` in the canonical frame (the example's last
    position is -1) and returns fewer tokens of the same frame; `key` and `answer_length` stay as they were. `span`
    stays too where tokens from all over the example are kept: it never grows, and covers the positions of what is kept.
    """

    @property
    def scorer(self) -> "LiveCompression | None":
        """What `Backbone.encode` must measure for `compress`; None where it needs no scores."""
        return None

    @property
    def layer_lengths(self) -> bool:
        """Whether payloads hold different numbers of tokens in different layers."""
        return False

    @property
    def payload_dtype(self) -> PayloadDtype | None:
        """The number format that the method's payloads are to be stored in; None: what the configuration says."""
        return None

    @abstractmethod
    def compress(self, encoded: Encoded) -> Encoded:
        """The example with a smaller payload; at least one token remains."""


def pool_tokens(
    tensor: Float[Tensor, "layers kv_heads tokens head_dim"], groups: Int[Tensor, " tokens"], count: int
) -> Float[Tensor, "layers kv_heads groups head_dim"]:
    """Means over groups of tokens, computed in float32 and returned in the tensor's dtype.

    Args:
        tensor: `[layers, kv_heads, tokens, head_dim]`.
        groups: `[tokens]`, the group of each token, 0 to `count` - 1, none empty.
        count: how many groups.
    """
    membership = torch.nn.functional.one_hot(groups.to(tensor.device).long(), count).to(torch.float32)
    means = torch.einsum("lhtd,tg->lhgd", tensor.to(torch.float32), membership / membership.sum(0))
    return means.to(tensor.dtype)


def even_groups(tokens: int, count: int) -> Int[Tensor, " tokens"]:
    """Groups of `tokens` successive tokens: `count` <= `tokens` of them, sizes differing by at most one."""
    return torch.arange(tokens) * count // tokens


def group_kinds(kinds: Int[Tensor, " tokens"], groups: Int[Tensor, " tokens"], count: int) -> Int[Tensor, " groups"]:
    """The most frequent kind in each group (the smallest of equals)."""
    votes = torch.zeros(count, 3, dtype=torch.long)
    votes.index_put_((groups.cpu().long(), kinds.cpu().long()), torch.ones(len(groups), dtype=torch.long), True)
    return votes.argmax(-1).to(kinds.dtype).to(kinds.device)
