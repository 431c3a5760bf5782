"""How much a compression may keep: tokens, bytes, or a fraction of what there is."""

import math

from inducekv.bytes import parse_bytes
from inducekv.error_text import shown

Budget = int | float | str
"""An int: tokens for each KV head of each layer. A float in (0, 1]: that fraction of the tokens. A str such as
"256KiB": bytes of one row of the batch (or of one payload), all layers and KV heads together."""


def check_budget(budget: Budget, name: str = "budget") -> None:
    """Refuse what is no budget.

    Raises:
        TypeError: `budget` is no int, float or str.
        ValueError: fewer than one token or byte, or a fraction outside (0, 1].
    """
    if isinstance(budget, bool) or not isinstance(budget, int | float | str):
        raise TypeError(
            f"{name} must be tokens (an int), a fraction (a float) or bytes (a str such as '256KiB'); "
            f"got {shown(budget)}"
        )
    if isinstance(budget, str):
        if parse_bytes(budget) < 1:
            raise ValueError(f"{name} must be at least one byte, got {shown(budget)}")
    elif isinstance(budget, float):
        if not 0 < budget <= 1:
            raise ValueError(
                f"{name} as a fraction must be above 0 and at most 1, got {shown(budget)}; tokens are an int"
            )
    elif budget < 1:
        raise ValueError(f"{name} must be at least one token, got {budget}")


def tokens_within(budget: Budget, tokens: int, bytes_per_token: int | float) -> int:
    """How many of `tokens` a budget allows, rounded down, but at least one where there is one.

    Args:
        budget: see `Budget`.
        tokens: how many there are.
        bytes_per_token: what one token takes in all layers and KV heads.
    """
    if isinstance(budget, str):
        allowed = math.floor(parse_bytes(budget) / bytes_per_token)
    elif isinstance(budget, float):
        allowed = math.floor(budget * tokens + 1e-9)  # 0.7 * 10 is 7
    else:
        allowed = budget
    return min(tokens, max(1, allowed))
