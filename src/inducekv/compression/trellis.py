"""Two bits a number, chosen together: what a code stands for depends on the two codes before it.

Trellis-coded quantisation (Marcellin and Fischer 1990) with the bit-shift trellis of QTIP (Tseng et al. 2024): the
last three codes, six bits, name one of 64 levels. Each code is still free to be any of four, so 64 levels are at hand
for the price of four; the Viterbi algorithm finds the path of codes nearest to a head's numbers. A head is a ring
(tail-biting): before its first code come its last two. Every level is looked up from codes that are known, so reading
needs no loop.
"""

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

BITS = 2
WINDOW = 3
"""Codes that name a level."""
STATES = 2 ** (BITS * WINDOW)
FEWEST = 6
"""Numbers in a ring that the algorithm needs; shorter ones are compared with every combination of codes."""
ROWS = 4096
"""Heads that are encoded at once."""
# fmt: off
LOWER = (
    -1.33,
    -0.53,
    2.2536,
    0.8842,
    -0.3203,
    -1.6374,
    -0.7782,
    0.2126,
    0.6308,
    -0.8693,
    -0.1069,
    1.5089,
    0.6344,
    -1.0276,
    -0.0058,
    -0.4372,
    -0.3185,
    1.2678,
    -1.0788,
    0.1574,
    1.4226,
    0.862,
    -1.8189,
    0.489,
    2.4246,
    -0.0164,
    0.5875,
    -0.593,
    1.4345,
    0.1146,
    -0.5553,
    -1.4318,
)
LEVELS = (*LOWER, *(-level for level in reversed(LOWER)))
"""By the last three codes, the oldest highest: of least squared error for a standard normal.

CHOICE: found as codebooks are, by encoding normal numbers and replacing each level by the mean of what chose it
(`tools/trellis_levels.py`); the opposite of a path of codes stands for the opposite numbers. Mean squared error on a
standard normal: 0.084 (four levels: 0.1175; the bound of any code at two bits: 0.0625).
"""


def encode_trellis(x: Float[Tensor, "*heads head_dim"]) -> UInt8[Tensor, "*heads head_dim"]:
    """Codes whose levels come near to numbers that are about standard normal, each head's by themselves.

    Tail-biting as is usual: a first search, over the head twice, finds which codes lie at the seam; a second keeps to
    them.
    """
    flat = x.float().reshape(-1, x.shape[-1])
    parts = [_ring(part) if x.shape[-1] >= FEWEST else _nearest_of_all(part) for part in flat.split(ROWS)]
    return torch.cat(parts).to(torch.uint8).reshape(x.shape) if parts else x.to(torch.uint8)


def decode_trellis(codes: UInt8[Tensor, "*heads head_dim"]) -> Float[Tensor, "*heads head_dim"]:
    """The levels that codes stand for, float32."""
    states = sum(codes.long().roll(age, -1) << (BITS * age) for age in range(WINDOW))
    return torch.tensor(LEVELS, device=codes.device)[states]


def _ring(x: Float[Tensor, "heads head_dim"]) -> Int[Tensor, "heads head_dim"]:
    twice = _path(torch.cat([x, x], -1), None)
    return _path(x, twice[:, x.shape[-1] - 1]) % 2**BITS


def _path(x: Float[Tensor, "heads head_dim"], ends: Int[Tensor, " heads"] | None) -> Int[Tensor, "heads head_dim"]:
    """The states of the nearest path (Viterbi), `ends` before its first and at its last number; None: any."""
    levels = torch.tensor(LEVELS, device=x.device)
    kept = STATES // 2**BITS  # states without their oldest code: all that the next code is added to
    cost = x.new_zeros(len(x), STATES)
    if ends is not None:
        cost = torch.full_like(cost, torch.inf).scatter(1, ends[:, None], 0.0)
    came_from = []
    for number in x.unbind(-1):
        least, oldest = cost.view(-1, 2**BITS, kept).min(1)
        came_from.append(oldest.to(torch.uint8))  # one for every number and state: an eighth of the bytes
        cost = least.repeat_interleave(2**BITS, -1) + (number[:, None] - levels).square()
    state = cost.argmin(-1) if ends is None else ends
    path = []
    for oldest in reversed(came_from):
        path.append(state)
        older = state // 2**BITS
        state = older + kept * oldest.gather(1, older[:, None])[:, 0].long()
    return torch.stack(path[::-1], -1)


def _nearest_of_all(x: Float[Tensor, "heads head_dim"]) -> Int[Tensor, "heads head_dim"]:
    width = x.shape[-1]
    codes = torch.cartesian_prod(*[torch.arange(2**BITS, device=x.device)] * width).reshape(-1, width)
    error = (x[:, None] - decode_trellis(codes.to(torch.uint8))).square().sum(-1)
    return codes[error.argmin(-1)]
