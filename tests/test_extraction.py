"""Candidates that one process hands to another arrive as they were, whatever their payloads are made of."""

import dataclasses

import pytest
import torch

import tiny
from inducekv import extraction
from inducekv.config import InduceKVConfig
from inducekv.examples import Example
from inducekv.model import empty_memory
from inducekv.ranks import Ranks


def fields_of(thing):
    values = {field.name: getattr(thing, field.name) for field in dataclasses.fields(thing)}
    return {name: fields_of(x) if dataclasses.is_dataclass(x) else x for name, x in values.items()}


def same(a, b):
    if isinstance(a, dict):
        return set(a) == set(b) and all(same(a[name], b[name]) for name in a)
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    return type(a) is type(b) and a == b


def examples():
    words = ("red", "grün", 'a "b"\n\0', "blue")
    return [Example(f"what is {i}?", word, (tiny.picture(i),), id=f"id-{i}") for i, word in enumerate(words)]


@pytest.mark.parametrize("payload_dtype", ["float16", "bfloat16", "int8", "int4", "int2"])
def test_entries_are_read_as_they_were_written(llava, payload_dtype):
    config = InduceKVConfig(payload_dtype=payload_dtype, batch_size=3)
    entries, keys = extraction.extract(llava, empty_memory(llava, config), examples(), "t", config)
    assert [entry.id for entry in entries] == [f"id-{i}" for i in range(4)]
    read, mistake = extraction._read(extraction._written(list(zip(entries, keys, strict=True)), None))
    assert mistake is None and len(read) == 4
    for entry, key, (other, other_key) in zip(entries, keys, read, strict=True):
        assert same(fields_of(entry), fields_of(other))
        assert same(key, other_key)


def test_a_process_without_a_share_hands_over_nothing(llava, monkeypatch):
    """Four examples in one chunk: rank 1 of 2 encodes none, and gets what rank 0 made."""
    config = InduceKVConfig(batch_size=8)
    memory = empty_memory(llava, config)
    alone = extraction.extract(llava, memory, examples(), "t", config)
    first = extraction._written(list(zip(*alone, strict=True)), None)
    monkeypatch.setattr(Ranks, "gather_bytes", lambda self, data: [first, data])
    monkeypatch.setattr(llava, "encode", lambda *_, **__: pytest.fail("not its share"))
    entries, keys = extraction.extract(llava, memory, examples(), "t", config, ranks=Ranks(1, 2))
    assert all(same(fields_of(a), fields_of(b)) for a, b in zip(alone[0], entries, strict=True))
    assert same(dict(enumerate(alone[1])), dict(enumerate(keys)))
