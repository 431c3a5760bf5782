"""Examples rendered, sorted by length and padded: what is done once for many runs of a model."""

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import torch

from inducekv.examples import Example
from inducekv.progress import SILENT, Progress
from inducekv.rendering import Batch, Prepared, Rendered, pad, render

if TYPE_CHECKING:
    from inducekv.backbone import Backbone


def prepare_examples(
    backbone: "Backbone",
    examples: Sequence[Example],
    with_answer: bool,
    *,
    embed: bool = False,
    shown: Sequence[Sequence[Example]] | None = None,
    batch_size: int = 32,
    progress: Progress = SILENT,
) -> Prepared:
    """See `Backbone.prepare`."""
    if not examples:
        raise ValueError("no examples given; at least one is needed")
    if batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {batch_size}")
    rendered = []
    progress.start("reading examples", len(examples))
    for example, before in zip(examples, shown or [()] * len(examples), strict=True):
        rendered.append(render(backbone.processor, example, with_answer, backbone.end_tokens, before))
        progress.advance()
    progress.stop()
    order = sorted(range(len(rendered)), key=lambda i: rendered[i].tokens)
    batches = []
    for start in range(0, len(order), batch_size):
        batch = _batch(backbone, order[start : start + batch_size], rendered)
        batches.append(replace(batch, text_inputs=backbone.decoder_inputs(batch.inputs)) if embed else batch)
    return Prepared(tuple(batches), len(rendered), max(r.answer_length for r in rendered))


def _batch(backbone: "Backbone", rows: list[int], rendered: list[Rendered]) -> Batch:
    chosen = [rendered[i] for i in rows]
    inputs = pad(chosen, backbone.pad_token, backbone.device, backbone.dtype, backbone.family.images_per_row)
    lengths = torch.tensor([r.answer_length for r in chosen], device=backbone.device)
    batch = Batch(torch.tensor(rows), inputs, lengths)
    if backbone.family.token_types == "prefix":
        batch.inputs["token_type_ids"] = batch.answer_mask.long()
    return batch
