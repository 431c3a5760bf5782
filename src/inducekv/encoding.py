"""From a batch of examples with answers to what one frozen pass leaves of each."""

from collections.abc import Sequence
from contextlib import nullcontext
from typing import TYPE_CHECKING

import torch
from transformers import DynamicCache

from inducekv.attention import attached
from inducekv.cache_name import CACHE
from inducekv.config import KeyPool
from inducekv.decoder import extent, kinds_of, tapped
from inducekv.encoded import Encoded
from inducekv.rendering import Batch
from inducekv.retrieval_key import retrieval_key
from inducekv.rope import shift_keys

if TYPE_CHECKING:
    from inducekv.backbone import Backbone
    from inducekv.compression import LiveCompression


@torch.no_grad()
def encode_batch(
    backbone: "Backbone",
    batch: Batch,
    key_layer: int | None,
    key_pool: KeyPool,
    scorer: "LiveCompression | None",
    before_own: Sequence[int],
) -> list[Encoded]:
    """Rows of a batch; see `Backbone.encode`.

    Args:
        before_own: for each row, how many of its first tokens are read but do not belong to the example.

    Raises:
        ValueError: `key_layer` is out of range.
    """
    before = backbone.decoder_inputs(batch.inputs)
    measuring = nullcontext() if scorer is None else scorer.measuring(backbone)
    with attached(backbone, None), tapped(backbone.text_model, key_layer) as hidden_of, measuring as measured:
        output = backbone.text_model(**before, **{CACHE: DynamicCache()}, use_cache=True)
    scores = None if measured is None else torch.stack(measured, 1).float()
    real = batch.inputs["attention_mask"].bool()
    prefix = real & ~batch.answer_mask
    keys = retrieval_key(backbone, hidden_of(output), key_pool, prefix, batch.inputs["input_ids"])
    kinds = kinds_of(batch, backbone.image_token)
    own = real & (real.long().cumsum(-1) > torch.tensor(list(before_own), device=real.device)[:, None])
    first, last = extent(before.get("position_ids"), own)
    layers = output[CACHE].layers
    made, values = (torch.stack([getattr(x, name).to(real.device) for x in layers], 1) for name in ("keys", "values"))
    shifted = shift_keys(backbone.text_model, made, -(last + 1))
    return [
        Encoded(
            key=keys[i],
            keys=shifted[i][:, :, own[i]],
            values=values[i][:, :, own[i]],
            kinds=kinds[i][own[i]],
            span=int(last[i] - first[i]) + 1,
            answer_length=int(batch.answer_lengths[i]),
            scores=None if scores is None else scores[i][:, :, own[i]],
        )
        for i in range(len(real))
    ]
