"""The scorer that a learner uses: answers' likelihood under the backbone, reading weighted candidates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from inducekv.backbone import Backbone
from inducekv.config import InduceKVConfig
from inducekv.injection import build_injection
from inducekv.key_space import KeySpace
from inducekv.payloads import PayloadSource
from inducekv.progress import SILENT, Progress
from inducekv.rendering import Prepared
from inducekv.retrieval import Calibration, Retrieved, retrieve
from inducekv.selection.objective import Split
from inducekv.selection.questions import Question


def to_phi(calibration: Calibration) -> Float[Tensor, " parameters"]:
    """phi as one vector: phi_tau, mass, then phi_lambda of every layer."""
    return torch.cat([calibration.phi_tau.reshape(1), calibration.mass.reshape(1), calibration.phi_lambda]).float()


def to_calibration(phi: Float[Tensor, " parameters"]) -> Calibration:
    """The inverse of `to_phi`."""
    return Calibration(phi[0], phi[2:], phi[1])


COMPOSED = 0.7
"""An answer can be put together if its tokens take at most so many nats each: a little better than even. CHOICE."""


@dataclass(frozen=True)
class _Chunk:
    prepared: Prepared
    keys: Float[Tensor, "questions key_dim"]
    own: Bool[Tensor, "questions entries"]
    known: dict[tuple[bytes, int, bytes, bytes], float] = field(default_factory=dict)  # by phi, question, what it read

    def forget_all_but(self, phis: Sequence[bytes]) -> None:
        for key in [key for key in self.known if key[0] not in phis]:
            del self.known[key]


class LikelihoodScorer:
    """Scores questions with the entries as they would be stored: compressed, quantised and read back (`Scorer`).

    Questions are rendered, seen and embedded once; every call then only runs the text decoder. Without gradients, and
    as long as phi stays as it is, only questions that read something else than before are run at all: an exchange of a
    few entries touches few questions.

    Args:
        backbone: the frozen model.
        payloads: of all candidates, by index.
        keys: `[entries, key_dim]` retrieval keys of the candidates, as stored.
        ids: of the candidates.
        answers: of the candidates.
        splits: the questions of each split, in random order.
        config: top_k, weighting, key_space, batch_size and hypergradient are used.
        progress: told while questions are prepared and while entries are read alone.
        behind: for each candidate, the ids of examples that it was encoded behind: their questions never read it, since
            it has seen their answers.
    """

    def __init__(
        self,
        backbone: Backbone,
        payloads: PayloadSource,
        keys: Float[Tensor, "entries key_dim"],
        ids: Sequence[str],
        answers: Sequence[str],
        splits: Mapping[Split, Sequence[Question]],
        config: InduceKVConfig,
        progress: Progress = SILENT,
        behind: Sequence[Sequence[str]] | None = None,
    ) -> None:
        self._backbone, self._payloads, self._config, self._progress = backbone, payloads, config, progress
        self._keys = keys.float().cpu()
        self._space = KeySpace.of(self._keys, config.key_space)
        self._ids, self._answers = list(ids), list(answers)
        others = behind if behind is not None else [()] * len(self._ids)
        self._seen = [{own, *names} for own, names in zip(self._ids, others, strict=True)]
        self._phis: list[bytes] = []  # the last two that questions were scored at
        self._chunks: dict[Split, list[_Chunk]] = {}
        progress.start("preparing questions", sum(map(len, splits.values())))
        for split, questions in splits.items():
            self._chunks[split] = self._prepare(questions)
        progress.stop()

    def _prepare(self, questions: Sequence[Question]) -> list[_Chunk]:
        chunks, size = [], self._config.batch_size
        for start in range(0, len(questions), size):
            some = questions[start : start + size]
            prepared = self._backbone.prepare([q.example for q in some], True, embed=True, batch_size=size)
            own = torch.tensor([[q.entry in seen for seen in self._seen] for q in some]).view(len(some), -1)
            chunk = _Chunk(prepared, torch.stack([q.key.float().cpu() for q in some]), own)
            chunks.append(self._without_what_can_be_composed(chunk, [q.example.answer for q in some]))
            self._progress.advance(len(some))
        return chunks

    def _without_what_can_be_composed(self, chunk: _Chunk, answers: Sequence[str | None]) -> _Chunk:
        """Forbids a question the candidates that hold its very answer, where the others suffice to put it together.

        CHOICE: what is learned this way (names of a colour and a shape) will be asked for in combinations that no entry
        holds, while every question of a task's own examples has entries to copy from. Judged by copying, selection
        gives up the entries that composing needs.
        """
        same = torch.tensor([[held == answer for held in self._answers] for answer in answers]).view(chunk.own.shape)
        everything, nothing = torch.ones(len(self._ids)), torch.zeros(len(self._ids), dtype=torch.bool)
        layers = self._payloads.layers
        count = self._backbone.layers if layers is None else len(layers)
        phi = to_phi(Calibration.initial(count, self._config.temperature, mass=self._config.mass or 0.0))
        strict = replace(chunk, own=chunk.own | same)
        with torch.no_grad():
            nll = self._score(strict, self._retrieve(strict, everything, nothing, phi), phi)
        return replace(chunk, own=chunk.own | (same & (nll < COMPOSED)[:, None]))

    @property
    def entries(self) -> int:
        """How many candidates there are."""
        return len(self._ids)

    def size(self, split: Split) -> int:
        return sum(len(chunk.keys) for chunk in self._chunks.get(split, ()))

    def batches(self, split: Split) -> int:
        return len(self._chunks.get(split, ()))

    def similarities(self, split: Split) -> Float[Tensor, "questions entries"]:
        """See `Scorer`."""
        rows = [
            self._space.similarities(chunk.keys, self._keys).masked_fill(chunk.own, -torch.inf)
            for chunk in self._chunks.get(split, ())
        ]
        return torch.cat(rows) if rows else torch.zeros(0, len(self._ids))

    def nll(
        self,
        split: Split,
        weights: Float[Tensor, " entries"],
        phi: Float[Tensor, " parameters"],
        batch: int | None = None,
    ) -> Float[Tensor, " questions"]:
        """See `Scorer`."""
        chunks = self._chunks[split] if batch is None else [self._chunks[split][batch]]
        unread = weights.detach() <= 0
        with_gradient = torch.is_grad_enabled() and (weights.requires_grad or phi.requires_grad)
        score = self._score if with_gradient else self._score_what_changed
        with torch.set_grad_enabled(with_gradient):
            return torch.cat([score(chunk, self._retrieve(chunk, weights, unread, phi), phi) for chunk in chunks])

    def nll_alone(
        self, split: Split, entries: Int[Tensor, "questions columns"], phi: Float[Tensor, " parameters"]
    ) -> Float[Tensor, "questions columns"]:
        """See `Scorer`."""
        rows, start = [], 0
        self._progress.start("reading entries one at a time", entries.numel())
        with torch.no_grad():
            for chunk in self._chunks[split]:
                some = entries[start : start + len(chunk.keys)]
                start += len(chunk.keys)
                columns = []
                for column in some.T:
                    columns.append(self._score(chunk, _single(column), phi))
                    self._progress.advance(len(column))
                rows.append(torch.stack(columns, dim=1))
        self._progress.stop()
        return torch.cat(rows)

    def _retrieve(self, chunk: _Chunk, weights: Tensor, unread: Tensor, phi: Tensor) -> Retrieved:
        return retrieve(
            chunk.keys,
            self._keys,
            to_calibration(phi).tau,
            top_k=self._config.top_k,
            weights=weights,
            exclude=chunk.own | unread,
            space=self._space,
        )

    def _score_what_changed(self, chunk: _Chunk, retrieved: Retrieved, phi: Tensor) -> Float[Tensor, " questions"]:
        at = phi.detach().numpy().tobytes()
        if at not in self._phis:
            self._phis = [*self._phis[-1:], at]
            for each in (chunk for chunks in self._chunks.values() for chunk in chunks):
                each.forget_all_but(self._phis)
        read = retrieved.indices.masked_fill(~retrieved.valid, -1)
        alpha = retrieved.alpha.detach()
        looked_up = [(at, row, read[row].numpy().tobytes(), alpha[row].numpy().tobytes()) for row in range(len(read))]
        missing = torch.tensor([row for row, key in enumerate(looked_up) if key not in chunk.known], dtype=torch.long)
        if len(missing):
            part = _part(chunk, missing)
            nll = self._score(part, retrieved.rows(missing) if part is not chunk else retrieved, phi)
            rows = missing.tolist() if part is not chunk else range(len(read))
            chunk.known.update(zip((looked_up[row] for row in rows), nll.tolist(), strict=True))
        return torch.tensor([chunk.known[key] for key in looked_up])

    def _score(self, chunk: _Chunk, retrieved: Retrieved, phi: Tensor) -> Float[Tensor, " questions"]:
        calibration = to_calibration(phi)
        if self._config.weighting != "log":  # the others leave attention's logits alone, so that a cache can say them
            calibration = replace(calibration, mass=calibration.mass.detach())

        def injection(rows: Tensor):  # type: ignore[no-untyped-def]
            return build_injection(
                self._payloads,
                retrieved.rows(rows),
                calibration,
                self._config.weighting,
                self._backbone,
                self._config.visibility,
                len(self._backbone.preamble) if self._config.shared_preamble else 0,
            )

        if self._config.hypergradient == "first_order":
            return self._backbone.score(chunk.prepared, injection).nll.float().cpu()
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative
            return self._backbone.score(chunk.prepared, injection).nll.float().cpu()


def _part(chunk: _Chunk, rows: Int[Tensor, " rows"]) -> _Chunk:
    """Only some of a chunk's questions; the chunk itself where the model's inputs cannot be cut."""
    (batch,) = chunk.prepared.batches
    places = batch.rows.argsort()[rows]
    part = None if len(rows) == len(chunk.keys) else batch.part(places.to(batch.answer_lengths.device))
    if part is None:
        return chunk
    return _Chunk(Prepared((part,), len(rows), chunk.prepared.max_answer), chunk.keys[rows], chunk.own[rows])


def _single(entries: Int[Tensor, " questions"]) -> Retrieved:
    """Each row reads exactly one entry, or nothing where it is -1."""
    valid = (entries >= 0).unsqueeze(1)
    ones = torch.ones(len(entries), 1)
    return Retrieved(entries.clamp_min(0).unsqueeze(1), ones * valid, ones, valid)
