"""Retrieval keys in few bits: what is stored, how exact it is, and that everything reads them as stored."""

from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from inducekv.encoded import ANSWER, Encoded
from inducekv.entry import Entry
from inducekv.layout import Layout
from inducekv.memory import KVMemory
from inducekv.stored_keys import KEY_DTYPES, decode_keys, encode_key, key_width


def unit(count: int, width: int) -> torch.Tensor:
    return normalize(torch.randn(count, width, generator=torch.Generator().manual_seed(0)), dim=-1)


@pytest.mark.parametrize(("dtype", "least"), [("float16", 0.999999), ("int8", 0.9999), ("int4", 0.98)])
@pytest.mark.parametrize("width", [7, 144, 256])
def test_directions_come_back(dtype: str, least: float, width: int) -> None:
    keys = unit(20, width)
    stored = torch.stack([encode_key(key, dtype) for key in keys])
    assert stored.dtype == KEY_DTYPES[dtype] and stored.shape == (20, key_width(width, dtype))
    back = decode_keys(stored, dtype, width)
    assert torch.allclose(back.norm(dim=-1), torch.ones(20), atol=1e-5)
    assert float((back * keys).sum(-1).min()) > least


def test_a_large_channel_leaves_the_others_their_codes() -> None:
    """The error of the small channels alone, beside one that is a hundred times as large as they."""
    keys = unit(8, 1024) * 32
    keys[:, 3] = 100.0
    back = decode_keys(torch.stack([encode_key(normalize(key, dim=-1), "int8") for key in keys]), "int8", 1024)
    small = torch.arange(1024) != 3
    assert float(torch.cosine_similarity(back[:, small], keys[:, small]).min()) > 0.99


def test_keys_that_cannot_be_stored_are_refused() -> None:
    with pytest.raises(ValueError, match="not finite"):
        encode_key(torch.tensor([float("nan"), 1.0]), "int8")
    with pytest.raises(ValueError, match="key_dtype must be one of float16, int8, int4; got 'int2'"):
        encode_key(torch.ones(2), "int2")
    assert decode_keys(encode_key(torch.zeros(4), "int4"), "int4", 4).eq(0).all()


def memory_of(dtype: str, width: int = 9) -> tuple[KVMemory, torch.Tensor]:
    layout = Layout((0, 1), kv_heads=1, head_dim=4, key_dim=width, key_dtype=dtype)
    keys, held = unit(3, width), KVMemory("64KiB", layout, "int8", {"architecture": "Tiny"})
    for i, key in enumerate(keys):
        encoded = Encoded(
            key, torch.ones(2, 1, 2, 4), torch.ones(2, 1, 2, 4), torch.tensor([ANSWER, ANSWER], dtype=torch.int8), 2, 2
        )
        held.add(Entry.of(encoded, id=str(i), task="t", payload_dtype="int8", key_dtype=dtype))
    return held, keys


@pytest.mark.parametrize("lazy", [False, True])
@pytest.mark.parametrize("dtype", KEY_DTYPES)
def test_a_memory_counts_writes_and_reads_its_keys(dtype: str, lazy: bool, tmp_path: Path) -> None:
    held, keys = memory_of(dtype)
    stored = [encode_key(key, dtype) for key in keys]
    assert held.bytes_by_kind()["keys"] == sum(key.nbytes for key in stored) == 3 * held.layout.key_nbytes
    assert sum(held.bytes_by_kind().values()) == held.nbytes
    assert torch.equal(held.keys(), decode_keys(torch.stack(stored), dtype, 9))
    held.save_pretrained(tmp_path)
    loaded = KVMemory.from_pretrained(tmp_path, lazy=lazy)
    assert loaded.layout == held.layout and torch.equal(loaded.keys(), held.keys())
    assert all(torch.equal(a.key, b) for a, b in zip(loaded.entries, stored, strict=True))
    loaded.save_pretrained(tmp_path / "again")
    assert (tmp_path / "again" / "memory.json").read_bytes() == (tmp_path / "memory.json").read_bytes()


def test_keys_of_another_format_are_refused() -> None:
    held, other = memory_of("int8")[0], memory_of("int4")[0]
    with pytest.raises(ValueError, match="must be int8 "):
        held.replace_all(list(other.entries))
    with pytest.raises(ValueError, match="same layout"):
        held.merge(other)
