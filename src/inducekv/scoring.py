"""How well the model predicts given answers."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn.functional import pad

from inducekv.rendering import Batch


@dataclass(frozen=True)
class Scores:
    """Likelihood of answers, end-of-turn token included.

    Attributes:
        nll: `[n]` negative log-likelihood in nats, mean over an answer's tokens.
        token_nll: `[n, max_answer]` of each answer token, answers aligned at the end; 0 where padded.
        token_mask: `[n, max_answer]` True at answer tokens.
    """

    nll: Float[Tensor, "n"]
    token_nll: Float[Tensor, "n max_answer"]
    token_mask: Bool[Tensor, "n max_answer"]


def capped(logits: Float[Tensor, "*rows vocabulary"], cap: float | None) -> Float[Tensor, "*rows vocabulary"]:
    """Logits squashed to (-cap, cap), as Gemma 2 (and PaliGemma 2 around it) does with what its head says."""
    return logits if cap is None else torch.tanh(logits / cap) * cap


def answer_nll(
    hidden: Float[Tensor, "rows tokens hidden"], head: nn.Module, batch: Batch, max_answer: int, cap: float | None
) -> tuple[Float[Tensor, "rows max_answer"], Bool[Tensor, "rows max_answer"]]:
    """`token_nll` and `token_mask` of one batch; logits are formed only where an answer token is predicted."""
    longest = int(batch.answer_lengths.max())
    logits = capped(head(hidden[:, -longest - 1 : -1]), cap)
    wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
    targets = batch.inputs["input_ids"][:, -longest:].to(wide.device)
    nll = wide.logsumexp(-1) - wide.gather(-1, targets[..., None])[..., 0]
    mask = batch.answer_mask[:, -longest:].to(wide.device)
    missing = (max_answer - longest, 0)
    return pad(nll * mask, missing), pad(mask, missing)
