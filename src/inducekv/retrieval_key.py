"""The retrieval key of a prompt: what the model has made of it by the key layer, and what was asked."""

import math
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Float32, Int
from torch import Tensor
from torch.nn.functional import normalize

from inducekv.config import KeyPool
from inducekv.devices import at_hand
from inducekv.preamble import own_tokens

if TYPE_CHECKING:
    from inducekv.backbone import Backbone


def key_dim(hidden_size: int, key_pool: KeyPool) -> int:
    """Numbers in a retrieval key: one hidden state, or two."""
    return 2 * hidden_size if key_pool == "last_and_text" else hidden_size


def retrieval_key(
    backbone: "Backbone",
    hidden: Float[Tensor, "rows tokens hidden"],
    key_pool: KeyPool,
    prefix: Bool[Tensor, "rows tokens"],
    ids: Int[Tensor, "rows tokens"] | None,
) -> Float32[Tensor, "rows key_dim"]:
    """Keys of unit norm from the tokens where `prefix` is True, on its device wherever the layer was.

    InduceKV, r(x) = h(x) / |h(x)| (specs section 1). `"mean"` pools all tokens (the paper's); `"last"` takes the last
    one (CHOICE: better in the trial). `"last_and_text"` (CHOICE) puts beside the last one the mean of the input
    embeddings of the text, both of unit norm, so that their inner products count alike: by the middle layer the last
    token says much of the picture and little of the question, and entries of other tasks about like pictures come too
    near. `"question"` (CHOICE) pools the question's own tokens: what the template writes around them is the same in all
    prompts, but not its states, which grow large and drown the question.

    Args:
        backbone: the model of the hidden state.
        hidden: state at the key layer.
        key_pool: see above.
        prefix: real tokens before the answer.
        ids: token ids; only `"last_and_text"` needs them.

    Raises:
        ValueError: `"last_and_text"` without `ids`.
    """
    hidden = hidden.to(prefix.device, torch.float32)
    if key_pool == "question":
        own = own_tokens(prefix, ids, backbone.preamble, backbone.closing)
        return normalize(_mean(hidden, own), dim=-1)
    if key_pool == "mean":
        return normalize(_mean(hidden, prefix), dim=-1)
    place = torch.arange(prefix.shape[1], device=prefix.device)
    final = torch.where(prefix, place, -1).amax(-1)
    last = normalize(hidden[torch.arange(len(final), device=final.device), final], dim=-1)
    if key_pool == "last":
        return last
    if ids is None:
        raise ValueError(
            "retrieval keys with key_pool='last_and_text' are made from the prompt's token ids as well, but the model "
            "was given inputs_embeds only; give input_ids, or learn the memory with key_pool='last'"
        )
    text = normalize(text_mean(backbone, ids.to(prefix.device), prefix), dim=-1)
    return torch.cat([last, text.to(last.device)], dim=-1) / math.sqrt(2)


def text_mean(
    backbone: "Backbone", ids: Int[Tensor, "rows tokens"], prefix: Bool[Tensor, "rows tokens"]
) -> Float32[Tensor, "rows hidden"]:
    """Mean input embedding of the words of a prompt: its tokens that are neither pictures nor special; 0 if none is."""
    table = backbone.model.get_input_embeddings()
    words = prefix & ~torch.isin(ids, backbone.special_tokens.to(ids.device))
    with at_hand(table):
        embedded = table(torch.where(words, ids, 0).to(table.weight.device))
    return _mean(embedded.to(prefix.device, torch.float32), words)


def _mean(
    x: Float32[Tensor, "rows tokens hidden"], shown: Bool[Tensor, "rows tokens"]
) -> Float32[Tensor, "rows hidden"]:
    weights = shown.to(x.dtype)[..., None]
    return (x * weights).sum(1) / weights.sum(1).clamp_min(1)
