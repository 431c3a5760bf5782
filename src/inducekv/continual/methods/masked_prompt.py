"""The retrieved examples as memory that nothing was taken from: what reading entries could reach before compression."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from inducekv.byte_cache import ByteCache
from inducekv.continual.methods.retrieved_prompt import RetrievedPrompt
from inducekv.entry import Entry
from inducekv.examples import Example
from inducekv.extraction import extract
from inducekv.injection import Injection
from inducekv.lookup import Reading
from inducekv.memory import KVMemory
from inducekv.model import InducedModel, empty_memory
from inducekv.progress import SILENT, Progress
from inducekv.retrieval import Calibration, Retrieved
from inducekv.training_state import Anchor

KEPT = 2**29
"""Bytes of encoded examples kept for the questions to come, at most. CHOICE."""


class MaskedPrompt(RetrievedPrompt):
    """Reads the same examples as `RetrievedPrompt`, each encoded alone and whole, in full precision, in every layer.

    A prompt in which no example sees another. Retrieval, weights and injection are the memory's own: what it lies
    behind `RetrievedPrompt` is lost by encoding examples alone, and what InduceKV lies behind it by compression.
    Examples are encoded when a question first retrieves them.
    """

    name = "masked_prompt"
    title = "Masked prompt"

    def __init__(self, model: InducedModel, max_new_tokens: int = 32) -> None:
        super().__init__(model, max_new_tokens)
        self._encoded = ByteCache[Entry](KEPT, lambda entry: entry.payload.keys.nbytes + entry.payload.values.nbytes)

    def answer(self, examples: Sequence[Example], progress: Progress = SILENT, task: str | None = None) -> list[str]:
        model, memory = self._model, self._model.memory
        if not examples:
            return []
        backbone = model.backbone
        retrieved = None
        if len(memory):
            retrieved = Reading(memory, model.config).retrieved(model.query_keys(list(examples), progress=progress))
        shown = 0 if retrieved is None else int(retrieved.valid.sum(-1).amax())
        prepared = backbone.prepare(examples, False, batch_size=max(1, self.batch_size // max(1, shown)))

        def injection(rows: Tensor) -> Injection | None:
            return None if retrieved is None else self._injection(retrieved.rows(rows.cpu()))

        return backbone.generate(prepared, injection, self._max_new_tokens, progress=progress)

    def _injection(self, retrieved: Retrieved) -> Injection | None:
        """What rows read of examples that are encoded here, or were for the questions before."""
        model = self._model
        config = model.config.replace(
            budget=2**62,
            payload="none",
            payload_tokens=0,
            payload_dtype="float32",
            payload_layers=None,
            neighbours=0,
        )
        wanted, places = torch.unique(retrieved.indices, return_inverse=True)
        whole = empty_memory(model.backbone, config)

        def encoded(anchor: Anchor) -> Entry:
            made, _ = extract(model.backbone, whole, [anchor.example()], anchor.task, config)
            return made[0]

        anchors = [self.sources.anchors[place] for place in wanted.tolist()]
        whole.add_all([self._encoded.get((anchor, 0), partial(encoded, anchor)) for anchor in anchors])
        whole.calibration = self._calibration(whole)
        return Reading(whole, config).injection(replace(retrieved, indices=places), model.backbone)

    def _calibration(self, whole: KVMemory) -> Calibration:
        """The memory's own; where that is of other layers, values enter as they are."""
        own, layers = self._model.memory.calibration, whole.layout.layers
        if self._model.memory.layout.layers == layers:
            return own
        return replace(own, phi_lambda=Calibration.identity(len(layers)).phi_lambda)
