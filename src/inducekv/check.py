"""Does memory read as prompt tokens on this very model? A few short passes say."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import transformers
from jaxtyping import Float
from torch import Tensor
from transformers import DynamicCache

from inducekv.attention import attached
from inducekv.cache_name import CACHE
from inducekv.devices import quantisation
from inducekv.injection import Injection
from inducekv.rope import shift_keys

if TYPE_CHECKING:
    from inducekv.backbone import Backbone

TOKENS = 8
"""Tokens of the memory, and of the prompt."""
TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-3}
"""Largest error, as a share of what the memory changes, by dtype. CHOICE, measured over all families of the table:
rounding gives 2e-7, 6e-7 and (bfloat16) 0.012; a memory rotated wrongly by a single position gives 0.16 and more."""
COARSE_TOLERANCE = 0.1
"""In half precision and on quantised weights."""

_CHECKED: dict[str, "Parity"] = {}


class ParityError(ValueError):
    """On this model, memory does not read as prompt tokens."""


@dataclass(frozen=True)
class Parity:
    """Outcome of the check.

    Attributes:
        error: distance between the prompt's last hidden states with memory as keys and values and with the same tokens
            in the prompt.
        effect: distance between those with the tokens in the prompt and without them.
        tolerance: largest `error / effect` allowed.
    """

    error: float
    effect: float
    tolerance: float

    @property
    def passed(self) -> bool:
        return self.error <= self.tolerance * self.effect  # False for numbers that are not finite


def check_parity(backbone: "Backbone") -> Parity:
    """Compare memory as keys and values with the same tokens in the prompt, once for a model in this process.

    The outcome is kept under the model's fingerprint, dtype, device, attention implementation and release of
    transformers, so that the next call costs nothing but the fingerprint.

    Raises:
        ParityError: they differ; the message says by how much.
    """
    said = {
        **backbone.fingerprint(),
        "dtype": str(backbone.dtype),
        "device": str(backbone.device),
        "attention": backbone.text_model.config._attn_implementation,
        "quantised": quantisation(backbone.model),
        "transformers": transformers.__version__,
    }
    key = json.dumps(said, sort_keys=True)
    if key not in _CHECKED:
        _CHECKED[key] = _compare(backbone)
    outcome = _CHECKED[key]
    if not outcome.passed:
        raise ParityError(
            f"on this {backbone.model.config.model_type!r} model memory does not read as prompt tokens: the hidden "
            f"states differ by {outcome.error:.3g}, where the memory changes them by {outcome.effect:.3g} (allowed: "
            f"{outcome.tolerance:g} of that). Its rotary embedding or attention is not what src/inducekv/families.py "
            "says of its family; attach without check=True only to look into it"
        )
    return outcome


@torch.no_grad()
def _compare(backbone: "Backbone") -> Parity:
    text = backbone.text_model
    window = getattr(text.config, "sliding_window", None)
    tokens = TOKENS if window is None else max(1, min(TOKENS, window // 2))
    draw = torch.Generator().manual_seed(0)
    vocabulary = text.get_input_embeddings().num_embeddings
    ids = torch.randint(0, vocabulary, (1, 2 * tokens), generator=draw).to(backbone.device)
    dtype = text.dtype
    hidden = torch.full((2 * tokens, 2 * tokens), torch.finfo(dtype).min, dtype=dtype, device=ids.device).triu(1)
    causal = hidden[None, None]  # said in full, for decoders that look both ways when left alone (PaliGemma's)
    both = {"input_ids": ids, "attention_mask": causal}
    prompt = {"input_ids": ids[:, tokens:], "attention_mask": causal[..., :tokens, :tokens]}
    cache = DynamicCache()
    with attached(backbone, None):
        expected = text(**both, **{CACHE: cache}, use_cache=True).last_hidden_state[:, tokens:]
        without = text(**prompt, use_cache=False).last_hidden_state
    device = backbone.device
    keys, values = (
        torch.stack([getattr(layer, name)[:, :, :tokens].to(device) for layer in cache.layers], 1)
        for name in ("keys", "values")
    )
    keys = shift_keys(text, keys, torch.full((1,), -tokens, device=device))
    mask = torch.ones(1, tokens, dtype=torch.bool, device=device)
    memory = Injection(list(keys.unbind(1)), list(values.unbind(1)), mask, None, torch.zeros_like(mask).long(), 1)
    with attached(backbone, memory):
        got = text(**prompt, use_cache=False).last_hidden_state
    tolerance = COARSE_TOLERANCE if quantisation(backbone.model) else TOLERANCE.get(got.dtype, COARSE_TOLERANCE)
    return Parity(_distance(got, expected), _distance(without, expected), tolerance)


def _distance(one: Float[Tensor, "*shape"], other: Float[Tensor, "*shape"]) -> float:
    return float((one.double() - other.double()).norm())
