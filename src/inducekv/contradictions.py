"""What was learned and is now said otherwise: the same pictures and question, another answer."""

from __future__ import annotations

import dataclasses
import hashlib
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float32
from torch import Tensor

from inducekv.config import InduceKVConfig
from inducekv.entry import TEXT_LIMIT, Entry, shorten
from inducekv.examples import Example, image_key
from inducekv.layout import Layout
from inducekv.memory import KVMemory
from inducekv.stored_keys import decode_keys
from inducekv.training_state import Anchor, TrainingState

NEAREST = 8
"""Old entries whose ids are compared with what a new example's would have been. CHOICE."""
ROWS = 256
"""New entries that are compared with the old ones at a time."""
_HASH = re.compile(r"[0-9a-f]{16}")


def without_contradicted(
    memory: KVMemory,
    fresh: Sequence[Entry],
    examples: Sequence[Example],
    state: TrainingState,
    config: InduceKVConfig,
    warnings: list[str],
) -> tuple[list[Entry], TrainingState]:
    """Old entries and anchors that are neither replaced nor contradicted by new ones; `warnings` is told of the latter.

    CHOICE: a new example contradicts an entry whose question has the same text and whose answer has another, where the
    pictures are the same. They are if both keys are stored as the same codes, so that no retrieval could tell the two
    entries apart, or if the old id is the hash of this content (`Example.identifier`), which holds even where rounding
    moved a code. Keys prove nothing where they say nothing of pictures. Entries of other tasks count. Examples of one
    call never contradict each other: five captions of a picture are no mistake.

    Args:
        memory: as it was; not changed.
        fresh: new entries; an old one with the id of one of them is replaced.
        examples: of the new entries, in their order.
        state: its anchors are looked through as well; it is not changed.
        config: of learning.
    """
    old = memory.entries
    by_id = {entry.id: place for place, entry in enumerate(fresh)}
    kept = [entry for entry in old if entry.id not in by_id]
    replaced = [(entry, by_id[entry.id]) for entry in old if entry.id in by_id]
    alike: dict[str, tuple[Entry, list[Example]]] = {}
    for entry, place in (
        *replaced,
        *_of_equal_keys(kept, fresh, examples, config),
        *_of_hashed_ids(kept, fresh, examples, memory.layout),
    ):
        if _same_question(examples[place], entry):
            alike.setdefault(entry.id, (entry, []))[1].append(examples[place])
    said = {name: pair for name, pair in alike.items() if not any(_same_answer(each, pair[0]) for each in pair[1])}
    if said:
        warnings.append(_told(list(said.values())))
    anchors = [anchor for anchor in state.anchors if anchor.id not in said or said[anchor.id][0].task != anchor.task]
    left = [entry for entry in kept if entry.id not in said]
    return left, TrainingState(_without_contradicted_anchors(anchors, examples), dict(state.behind))


def hashed_id(task: str, identifier: str) -> str:
    """The id of an entry that cannot have its example's own: 16 hex digits of the SHA-256 over task and id."""
    return hashlib.sha256(f"{task}\0{identifier}".encode()).hexdigest()[:16]


def _of_equal_keys(
    old: Sequence[Entry], fresh: Sequence[Entry], examples: Sequence[Example], config: InduceKVConfig
) -> Iterator[tuple[Entry, int]]:
    """Old entries with the places of new ones whose prompt has as many positions and a key of the same codes."""
    places = defaultdict(list)
    for place, entry in enumerate(fresh):
        places[_codes(entry)].append(place)
    input_only = config.key_layer == 0 and config.key_pool != "mean"  # the last token's embedding is always the same
    if input_only or any(len(alike) > 1 and _of_several_pictures(alike, examples) for alike in places.values()):
        return
    for entry in old:
        for place in places.get(_codes(entry), ()):
            if entry.span - entry.answer_length == fresh[place].span - fresh[place].answer_length:
                yield entry, place


def _of_several_pictures(places: Sequence[int], examples: Sequence[Example]) -> bool:
    """Whether examples have one question and different pictures."""
    pictures = defaultdict(set)
    for place in places:
        pictures[examples[place].question].add(image_key(examples[place]) if examples[place].images else "")
    return any(len(different) > 1 for different in pictures.values())


def _of_hashed_ids(
    old: Sequence[Entry], fresh: Sequence[Entry], examples: Sequence[Example], layout: Layout
) -> Iterator[tuple[Entry, int]]:
    """Old entries whose id is the hash of a new example's pictures and question and of their own answer."""
    hashed = [entry for entry in old if _HASH.fullmatch(entry.id)]
    if not hashed:
        return
    keys = _unit_keys(hashed, layout)
    for start in range(0, len(fresh), ROWS):
        similar = _unit_keys(fresh[start : start + ROWS], layout) @ keys.T
        for place, row in enumerate(similar.topk(min(NEAREST, len(hashed))).indices.tolist(), start):
            for entry in (hashed[i] for i in row):
                if _same_question(examples[place], entry):
                    name = dataclasses.replace(examples[place], answer=entry.answer, id=None).identifier
                    if entry.id in (name, hashed_id(entry.task, name)):
                        yield entry, place


def _unit_keys(entries: Sequence[Entry], layout: Layout) -> Float32[Tensor, "entries key_dim"]:
    return decode_keys(torch.stack([entry.key for entry in entries]), layout.key_dtype, layout.key_dim)


def _codes(entry: Entry) -> bytes:
    return entry.key.contiguous().view(torch.uint8).numpy().tobytes()


def _same_question(example: Example, entry: Entry) -> bool:
    """As far as an entry keeps its text."""
    return shorten(example.question, TEXT_LIMIT - len(entry.answer.encode())) == entry.question


def _same_answer(example: Example, entry: Entry) -> bool:
    return shorten(example.answer or "", TEXT_LIMIT).strip() == entry.answer.strip()


def _without_contradicted_anchors(anchors: Sequence[Anchor], examples: Sequence[Example]) -> list[Anchor]:
    asked = {anchor.question for anchor in anchors}
    answers = defaultdict(set)
    for example in examples:
        if example.question in asked:  # else its pictures need not be read again
            answers[example.question, Anchor.of(example, "").pictures].add((example.answer or "").strip())
    return [a for a in anchors if a.answer.strip() in answers.get((a.question, a.pictures), {a.answer.strip()})]


def _told(pairs: Sequence[tuple[Entry, Sequence[Example]]]) -> str:
    entry, examples = pairs[-1]
    texts = (examples[-1].question, entry.answer, examples[-1].answer or "")
    question, was, now = (shorten(text, 80) for text in texts)
    count = f"{len(pairs)} entries were" if len(pairs) > 1 else "an entry was"
    return (
        f"{count} replaced, since the same pictures and question now have another answer, such as {question!r}: "
        f"{was!r} before, {now!r} now"
    )
