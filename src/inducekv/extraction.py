"""Entries from examples, encoded and compressed chunk by chunk; several processes take a share of the chunks each."""

import dataclasses
import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import safetensors.torch
import torch
from jaxtyping import Float
from torch import Tensor

from inducekv.backbone import Backbone
from inducekv.compression import compression_named
from inducekv.config import InduceKVConfig
from inducekv.entry import Entry
from inducekv.examples import Example
from inducekv.memory import KVMemory
from inducekv.neighbours import Neighbours, nearest_others
from inducekv.progress import SILENT, Progress
from inducekv.ranks import ALONE, Ranks
from inducekv.stored_payload import Payload

Extracted = tuple[Entry, Float[Tensor, " key_dim"]]
"""An entry as it would be stored, and its key before it was: float32 `[key_dim]`."""


def extract(
    backbone: Backbone,
    memory: KVMemory,
    examples: Sequence[Example],
    task: str,
    config: InduceKVConfig,
    progress: Progress = SILENT,
    ranks: Ranks = ALONE,
) -> tuple[list[Entry], list[Float[Tensor, " key_dim"]]]:
    """Entries of `examples` as `memory` would store them, and their float32 keys before that, both in their order.

    Chunks of `config.batch_size` examples are compressed one after another, so that whole payloads are never held for
    all. Rank r encodes every `count`-th chunk from r on; chunks stay whole, so that numbers are those of one process.

    Raises:
        ValueError: as `Backbone.encode` and `Entry.of`; in every process, whichever of them met it.
    """
    behind = nearest_others(backbone, examples, config, progress) if config.neighbours else None
    places = range(len(examples))
    chunks = [places[start : start + config.batch_size] for start in range(0, len(examples), config.batch_size)]
    mine = chunks[ranks.rank :: ranks.count]
    progress.start("encoding candidates", sum(map(len, mine)))
    made: list[Extracted] = []
    mistake: ValueError | None = None
    try:
        for chunk in mine:
            made += _encoded(backbone, memory, examples, chunk, behind, task, config)
            progress.advance(len(chunk))
    except ValueError as error:
        if ranks.count == 1:
            raise
        mistake = error  # the others wait for this process
    progress.stop()
    if ranks.count > 1:
        shares = [_read(data) for data in ranks.gather_bytes(_written(made, mistake))]
        for _, said in shares:
            if said is not None:
                raise ValueError(said) from mistake
        turns = [iter(share) for share, _ in shares]
        made = [next(turns[number % ranks.count]) for number, chunk in enumerate(chunks) for _ in chunk]
    return [entry for entry, _ in made], [key for _, key in made]


def _encoded(
    backbone: Backbone,
    memory: KVMemory,
    examples: Sequence[Example],
    chunk: Sequence[int],
    behind: Neighbours | None,
    task: str,
    config: InduceKVConfig,
) -> Iterator[Extracted]:
    compression = compression_named(config)
    encoded = backbone.encode(
        [examples[place] for place in chunk],
        key_layer=config.key_layer,
        key_pool=config.key_pool,
        batch_size=config.batch_size,
        scorer=compression.scorer,
        shared_preamble=config.shared_preamble,
        behind=None if behind is None else [[examples[other] for other in behind.places[place]] for place in chunk],
    )
    for place, whole in zip(chunk, encoded, strict=True):
        example, others = examples[place], tuple[str, ...]()
        if behind is not None:  # read behind others, the retrieval key would know of them
            whole = replace(whole, key=behind.retrieval_keys[place])
            others = tuple(examples[other].identifier for other in behind.places[place])
        entry = Entry.of(
            compression.compress(whole),
            id=example.identifier,
            task=task,
            payload_dtype=memory.payload_dtype,
            question=example.question,
            answer=example.answer or "",
            layers=memory.layout.layers,
            key_dtype=memory.layout.key_dtype,
            behind=others,
        )
        yield entry, whole.key.detach().float().cpu()


# -- between processes: safetensors, in which a tensor of JSON holds what is not a tensor

_REST = "rest"


def _written(made: Sequence[Extracted], mistake: ValueError | None) -> bytes:
    tensors: dict[str, Tensor] = {}
    rest = [_taken_apart(entry, f"{number}.", tensors) for number, (entry, _) in enumerate(made)]
    tensors |= {f"{number}.": key for number, (_, key) in enumerate(made)}
    said = None if mistake is None else str(mistake)
    text = json.dumps({"entries": rest, "mistake": said}).encode()
    tensors[_REST] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    whole = {name: x.clone(memory_format=torch.contiguous_format) for name, x in tensors.items()}  # no shared storage
    return safetensors.torch.save(whole)


def _read(data: bytes) -> tuple[list[Extracted], str | None]:
    tensors = safetensors.torch.load(data)
    rest = json.loads(tensors.pop(_REST).numpy().tobytes())
    entries: list[Extracted] = []
    for number, values in enumerate(rest["entries"]):
        payload = Payload(**_put_together(values.pop("payload"), f"{number}.payload.", tensors))
        entry = Entry(payload=payload, **_put_together(values, f"{number}.", tensors))
        entries.append((entry, tensors[f"{number}."]))
    return entries, rest["mistake"]


def _taken_apart(thing: Any, prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """A dataclass's fields that JSON can say; those that are tensors go to `tensors`, dataclasses are taken apart."""
    values: dict[str, Any] = {}
    for field in dataclasses.fields(thing):
        value = getattr(thing, field.name)
        if isinstance(value, Tensor):
            tensors[prefix + field.name] = value
        elif dataclasses.is_dataclass(value):
            values[field.name] = _taken_apart(value, f"{prefix}{field.name}.", tensors)
        else:
            values[field.name] = value
    return values


def _put_together(values: dict[str, Any], prefix: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    """The fields again: JSON has no tuples, and entries no lists."""
    own = {name.removeprefix(prefix): x for name, x in tensors.items() if name.startswith(prefix)}
    fields = {name: x for name, x in own.items() if name and "." not in name}
    return fields | {name: tuple(x) if isinstance(x, list) else x for name, x in values.items()}
