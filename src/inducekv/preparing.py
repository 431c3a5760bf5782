"""Rendered examples sorted by length, padded, and on request embedded: what is done once for many runs of a model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from inducekv.rendering import Batch, Prepared, Rendered, pad

if TYPE_CHECKING:
    from inducekv.backbone import Backbone


def batched(backbone: "Backbone", rendered: Sequence[Rendered], batch_size: int, embed: bool) -> Prepared:
    """Batches of at most `batch_size` rows; `embed` and the errors are those of `Backbone.prepare`."""
    order = sorted(range(len(rendered)), key=lambda i: rendered[i].tokens)
    batches = []
    for start in range(0, len(order), batch_size):
        batch = _batch(backbone, order[start : start + batch_size], rendered)
        batches.append(replace(batch, text_inputs=backbone.decoder_inputs(batch.inputs)) if embed else batch)
    return Prepared(tuple(batches), len(rendered), max(r.answer_length for r in rendered))


def _batch(backbone: "Backbone", rows: list[int], rendered: Sequence[Rendered]) -> Batch:
    chosen = [rendered[i] for i in rows]
    inputs = pad(chosen, backbone.pad_token, backbone.device, backbone.dtype, backbone.family.images_per_row)
    lengths = torch.tensor([r.answer_length for r in chosen], device=backbone.device)
    batch = Batch(torch.tensor(rows), inputs, lengths)
    if backbone.family.token_types == "prefix":
        batch.inputs["token_type_ids"] = batch.answer_mask.long()
    return batch
