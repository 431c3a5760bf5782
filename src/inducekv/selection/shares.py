"""Ordering many entries in linear time: in shares, whose better halves are ordered together until one is left."""

import math
from collections.abc import Callable, Sequence
from itertools import zip_longest

from jaxtyping import Float
from torch import Tensor

SHARE = 1024
"""Entries that are ordered together, at most. CHOICE: what an order costs grows with their square, for this many a
fraction of a second with keys of a few hundred dimensions."""

Order = Callable[[Float[Tensor, "entries key_dim"]], Sequence[int] | Tensor]


def in_shares(keys: Float[Tensor, "entries key_dim"], order: Order, size: int = SHARE) -> list[int]:
    """Indices of all entries as `order` would have them, in time that grows with their number and not with its square.

    Up to `size` entries are simply ordered. More are dealt out into shares, and each is ordered alone; then the better
    halves of two shares are ordered together, and so on until one share is left (CHOICE: a tournament, after GreeDi,
    Mirzasoleiman et al. 2013). Behind it come those that left last.

    Args:
        keys: retrieval keys.
        order: indices of the keys it is given, each once, the most wanted first.
        size: entries ordered together, at least 2.
    """

    def ordered(some: Sequence[int]) -> list[int]:
        return [some[int(place)] for place in order(keys[list(some)])]

    count = max(1, math.ceil(len(keys) / size))
    shares = [
        ordered(range(share, len(keys), count)) for share in range(count)
    ]  # a cross-section of a sorted file each
    half, left = size // 2, list[int]()
    while len(shares) > 1:
        pairs, odd = list(zip(shares[::2], shares[1::2], strict=False)), shares[len(shares) // 2 * 2 :]
        lost = zip_longest(*(share[half:] for pair in pairs for share in pair))
        left = [index for rank in lost for index in rank if index is not None] + left
        shares = [ordered(one[:half] + other[:half]) for one, other in pairs] + odd
    return shares[0] + left
