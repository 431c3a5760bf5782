"""Payloads whose layers hold different numbers of tokens: what PrefixKV keeps, files, and what attention reads."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import tiny
from inducekv.attention import attached
from inducekv.backbone import Backbone
from inducekv.cache import as_cache
from inducekv.compression import AttentionSum, PrefixKV, RotateKV, ShiftKV
from inducekv.config import InduceKVConfig
from inducekv.encoded import Encoded
from inducekv.entry import Entry
from inducekv.injection import Injection, build_injection, joined
from inducekv.layer_lengths import by_layer, fills, of_layers
from inducekv.layout import Layout
from inducekv.memory import KVMemory
from inducekv.memory_file import INDEX, MemoryFileError, _index_digest
from inducekv.model import InducedModel
from inducekv.payloads import Payloads
from inducekv.retrieval import Calibration, Retrieved
from test_parity import inputs_of

METHOD = PrefixKV(AttentionSum(4))


def encoded_of(backbone: Backbone, seed: int, method: PrefixKV = METHOD) -> tuple[Encoded, Encoded]:
    """An example whole, and as the method keeps it."""
    [whole] = backbone.encode([tiny.example(seed)], scorer=method.scorer, key_pool="last_and_text")
    return whole, method.compress(whole)


def uneven(backbone: Backbone, seed: int) -> tuple[Encoded, Encoded]:
    """An example, and the same with a token fewer in each layer than in the one before."""
    whole, _ = encoded_of(backbone, seed)
    lengths = torch.tensor([max(1, whole.tokens - layer) for layer in range(len(whole.keys))])
    held = torch.arange(whole.tokens) < lengths[:, None]
    return whole, dataclasses.replace(whole, layer_mask=held)


def retrieved(slots: list[list[int]]) -> Retrieved:
    indices = torch.tensor(slots)
    share = torch.full(indices.shape, 1 / indices.shape[1])
    return Retrieved(indices, share, share, torch.ones(indices.shape).bool())


def injection_of(backbone: Backbone, payloads: Payloads, slots: list[list[int]]) -> Injection:
    made = build_injection(payloads, retrieved(slots), Calibration.identity(backbone.layers), "log", backbone)
    assert made is not None
    return made


@torch.no_grad()
def logits(backbone: Backbone, injection: Injection | None, seeds: list[int]) -> torch.Tensor:
    inputs = inputs_of(backbone, [tiny.example(seed, answer=False) for seed in seeds])
    with attached(backbone, injection):
        return backbone.model(**inputs).logits[:, -1]


@settings(deadline=None, max_examples=50)
@given(lengths=st.lists(st.integers(1, 6), min_size=1, max_size=5))
def test_layers_side_by_side_come_back_and_take_no_more_than_they_need(lengths: list[int]) -> None:
    held = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    x = torch.randn(max(lengths), len(lengths), 2, 4)
    stored = by_layer(x, held)
    assert len(stored) == -(-sum(lengths) // len(lengths))
    assert torch.equal(of_layers(stored, held).transpose(1, 2), x.transpose(0, 1) * held[..., None, None])
    assert fills(held.sum(-1), torch.tensor(len(stored)), len(lengths))
    assert not fills(held.sum(-1), torch.tensor(len(stored) + 1), len(lengths))


def test_prefix_kv_keeps_the_highest_scored_tokens_of_each_layer_and_the_total(backbone: Backbone) -> None:
    whole, small = encoded_of(backbone, 1)
    assert small.layer_mask is not None and whole.scores is not None
    lengths = small.layer_mask.sum(-1)
    assert int(lengths.sum()) == 4 * backbone.layers and int(lengths.min()) >= 1
    for layer, count in enumerate(lengths.tolist()):
        for head in range(whole.keys.shape[1]):
            kept = whole.scores[layer, head].topk(count).indices.sort().values
            assert torch.equal(small.keys[layer, head, :count], whole.keys[layer, head, kept])
            assert torch.equal(small.values[layer, head, :count], whole.values[layer, head, kept])
    assert small.span == whole.span
    with pytest.raises(ValueError, match="layers of this example hold different tokens"):
        small.select(torch.tensor([0]))


def test_prefix_kv_payloads_take_a_profile_measured_beforehand(llava: Backbone) -> None:
    whole, small = encoded_of(llava, 1, dataclasses.replace(METHOD, drop_ratios=(0.0, 0.5, 0.9)))
    assert small.layer_mask is not None
    assert small.layer_mask.sum(-1).tolist() == [whole.tokens - round(x * whole.tokens) for x in (0, 0.5, 0.9)]
    with pytest.raises(ValueError, match="drop_ratios are for 1 layers, the model has 3"):
        dataclasses.replace(METHOD, drop_ratios=(0.5,)).compress(whole)


def test_layers_of_full_length_are_read_as_ever(backbone: Backbone) -> None:
    whole, _ = encoded_of(backbone, 1)
    masked = dataclasses.replace(whole, layer_mask=torch.ones(whole.keys.shape[0], whole.tokens, dtype=torch.bool))
    plain, same = (injection_of(backbone, Payloads.of([x]), [[0], [0]]) for x in (whole, masked))
    assert plain.layer_mask is None and same.layer_mask is not None
    assert torch.equal(logits(backbone, plain, [2, 5]), logits(backbone, same, [2, 5]))


def test_what_a_layer_does_not_hold_is_not_read_there(backbone: Backbone) -> None:
    whole, small = uneven(backbone, 1)
    assert small.layer_mask is not None
    before = logits(backbone, injection_of(backbone, Payloads.of([small]), [[0]]), [2])
    gone = ~small.layer_mask[:, None, :, None]
    other = dataclasses.replace(
        small, keys=torch.where(gone, 7.0, small.keys), values=torch.where(gone, 9.0, small.values)
    )
    assert torch.equal(before, logits(backbone, injection_of(backbone, Payloads.of([other]), [[0]]), [2]))
    assert not torch.allclose(before, logits(backbone, injection_of(backbone, Payloads.of([whole]), [[0]]), [2]))


def test_one_layer_shortened_reads_what_a_shorter_payload_holds(llava: Backbone) -> None:
    """Layer by layer: all layers cut to the same tokens by a mask are a payload of those tokens."""
    whole, _ = encoded_of(llava, 1)
    kept = torch.arange(whole.tokens) < 3
    masked = dataclasses.replace(whole, layer_mask=kept.expand(whole.keys.shape[0], -1))
    short, cut = (injection_of(llava, Payloads.of([x]), [[0]]) for x in (whole.select(kept), masked))
    torch.testing.assert_close(logits(llava, short, [2]), logits(llava, cut, [2]), rtol=1e-9, atol=1e-9)


def test_rows_joined_and_chosen_read_their_own_layers(llava: Backbone) -> None:
    (plain, _), (_, ragged) = encoded_of(llava, 1), uneven(llava, 3)
    a = injection_of(llava, Payloads.of([plain]), [[0]])
    b = injection_of(llava, Payloads.of([ragged, plain]), [[0, 1]])
    alone = torch.cat([logits(llava, a, [2]), logits(llava, b, [2])])
    both = joined([b, a], [torch.tensor([1]), torch.tensor([0])], 2)
    assert both is not None
    torch.testing.assert_close(logits(llava, both, [2, 2]), alone, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(logits(llava, both.rows(torch.tensor([1])), [2]), alone[1:], rtol=1e-9, atol=1e-9)
    with pytest.raises(ValueError, match="hold different numbers of tokens"):
        as_cache(llava, dataclasses.replace(b, bias=None), inputs_of(llava, [tiny.example(2, answer=False)]))


# -- memories


def learned(backbone: Backbone, payload: object = METHOD, **changes: object) -> InducedModel:
    fields = {"budget": "64KiB", "payload": payload, "selector": "herding", "calibration_steps": 0, "abstain": False}
    model = InducedModel.from_pretrained(backbone, config=InduceKVConfig(**{**fields, **changes}))
    model.learn([tiny.example(seed) for seed in range(5)], task="things")
    return model


@pytest.mark.parametrize("payload", [METHOD, PrefixKV(ShiftKV(3, proxies=64, groups=8)), RotateKV(METHOD, bits=3)])
@pytest.mark.parametrize("lazy", [False, True])
def test_a_memory_is_learned_counted_saved_and_read(
    llava: Backbone, tmp_path: Path, payload: PrefixKV | RotateKV, lazy: bool
) -> None:
    model = learned(llava, payload)
    memory = model.memory
    assert len(memory) == 5 and memory.layout.layer_lengths
    model.save_memory(tmp_path)
    (file,) = tmp_path.glob("memory-*.safetensors")
    assert file.stat().st_size + (tmp_path / INDEX).stat().st_size <= memory.file_nbytes <= memory.budget
    assert sum(memory.bytes_by_kind().values()) == memory.nbytes
    assert json.loads((tmp_path / INDEX).read_bytes())["version"] == 4
    again = KVMemory.from_pretrained(tmp_path, llava, lazy=lazy)
    assert (again.nbytes, again.layout, again.lazy) == (memory.nbytes, memory.layout, lazy)
    for one, other in zip(memory.entries, again.entries, strict=True):
        assert torch.equal(one.payload.keys, other.payload.keys)
        assert one.payload.layer_lengths is not None and other.payload.layer_lengths is not None
        assert torch.equal(one.payload.layer_lengths, other.payload.layer_lengths)
    questions = [tiny.example(seed, answer=False) for seed in (7, 8)]
    same = InducedModel(llava, again, model.config)
    assert [a.text for a in model.answer_all(questions)] == [a.text for a in same.answer_all(questions)]
    first = files_of(tmp_path)
    again.save_pretrained(tmp_path)
    assert files_of(tmp_path) == first


def files_of(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.glob("memory*")}


def test_lengths_take_four_bytes_a_layer(llava: Backbone) -> None:
    ragged, plain = learned(llava).memory, learned(llava, AttentionSum(4)).memory
    assert ragged.layout.layer_lengths and not plain.layout.layer_lengths
    assert ragged.nbytes - plain.nbytes == 5 * 4 * llava.layers


def test_memories_with_and_without_lengths_do_not_mix(llava: Backbone) -> None:
    ragged, plain = learned(llava), learned(llava, AttentionSum(4))
    with pytest.raises(ValueError, match="same layout"):
        plain.memory.merge(ragged.memory)
    with pytest.raises(ValueError, match="has lengths of its own for each layer"):
        plain.memory.replace_all(list(ragged.memory.entries))
    held = list(ragged.memory.entries)
    ragged.config = plain.config
    with pytest.raises(ValueError, match=r"lacks lengths of its own.*learned with"):
        ragged.learn([tiny.example(9)], task="more")
    assert list(ragged.memory.entries) == held


@pytest.mark.parametrize(
    ("lengths", "said"),
    [([0, 6, 6], "at least 1"), ([4, 5, 4], "together fill 4 tokens"), ([1, 5, 3], "together fill 4 tokens")],
)
def test_lengths_that_do_not_fill_a_payload_are_refused(llava: Backbone, lengths: list[int], said: str) -> None:
    model = learned(llava)
    entry: Entry = model.memory.entries[0]
    wrong = dataclasses.replace(entry.payload, layer_lengths=torch.tensor(lengths, dtype=torch.int32))
    with pytest.raises(ValueError, match=said):
        model.memory.replace_all([dataclasses.replace(entry, payload=wrong)])


def test_a_file_whose_lengths_do_not_fit_is_refused(llava: Backbone, tmp_path: Path) -> None:
    import hashlib

    from safetensors.torch import load, save

    model = learned(llava)
    model.save_memory(tmp_path)
    (file,) = tmp_path.glob("memory-*.safetensors")
    tensors = load(file.read_bytes())
    tensors["layer_lengths"][0, 0] += 100
    data = save(tensors)
    name = f"memory-{hashlib.sha256(data).hexdigest()[:32]}.safetensors"
    (tmp_path / name).write_bytes(data)
    index = json.loads((tmp_path / INDEX).read_bytes())
    index |= {"file": name, "size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    index["index_sha256"] = _index_digest(index)
    (tmp_path / INDEX).write_text(json.dumps(index))
    with pytest.raises(MemoryFileError, match="lengths of layers do not fill"):
        KVMemory.from_pretrained(tmp_path, llava)


def filled() -> KVMemory:
    """A memory whose layers hold different numbers of tokens, without a model."""
    layout = Layout((0, 1, 2), kv_heads=2, head_dim=4, key_dim=8, layer_lengths=True)
    held = KVMemory("64KiB", layout, "int4", {"architecture": "Tiny"})
    for i, lengths in enumerate(([3, 1, 2], [1, 1, 5], [2, 2, 2])):
        mask = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        numbers = torch.arange(3 * 2 * max(lengths) * 4).reshape(3, 2, -1, 4).sin() * (i + 1)
        key = torch.nn.functional.normalize(torch.arange(8.0) + i, dim=-1)
        kinds = torch.zeros(max(lengths), dtype=torch.int8)
        encoded = Encoded(key, numbers, numbers.cos(), kinds, 9, 2, layer_mask=mask)
        held.add(Entry.of(encoded, id=f"e{i}", task="t", payload_dtype="int4", question="q", answer="a"))
    return held


@pytest.mark.parametrize("version", ["memory-lengths", "memory-v3"])
def test_the_format_has_not_changed(tmp_path: Path, version: str) -> None:
    """A memory written when version 4 was made is read, and written again byte for byte; one of version 3 alike."""
    golden = Path(__file__).parent / "golden" / "memory-lengths"
    loaded = KVMemory.from_pretrained(golden.with_name(version))
    for one, other in zip(loaded.entries, filled().entries, strict=True):
        assert one.payload.layer_lengths is not None and other.payload.layer_lengths is not None
        assert torch.equal(one.payload.layer_lengths, other.payload.layer_lengths)
        for mine, theirs in zip(one.payload.load(), other.payload.load(), strict=True):
            assert mine is not None and theirs is not None and torch.equal(mine, theirs)
    loaded.save_pretrained(tmp_path)
    assert files_of(tmp_path) == files_of(golden)
