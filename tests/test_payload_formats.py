"""Methods whose payloads have a number format of their own: the memory stores them in it, and saves its bytes."""

import dataclasses
from pathlib import Path

import pytest
import torch

import tiny
from inducekv.compression import Compression, LiveCompression, MeanPool, NoCompression, RotateKV, ShiftKV, SphericalKV
from inducekv.config import InduceKVConfig
from inducekv.encoded import Encoded
from inducekv.memory import KVMemory
from inducekv.model import InducedModel
from inducekv.stored_payload import Payload


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_rotate_kv_says_the_format_and_leaves_the_rounding_to_the_memory(llava: "tiny.Backbone", bits: int) -> None:
    dtype = {2: "int2", 3: "int3", 4: "levels4", 8: "int8"}[bits]
    method = RotateKV(MeanPool(4), bits=bits)
    [encoded] = llava.encode([tiny.example(1)])
    pooled, small = MeanPool(4).compress(encoded), method.compress(encoded)
    assert torch.equal(small.keys, pooled.keys) and torch.equal(small.values, pooled.values)
    assert RotateKV(bits=bits).compress(encoded) is encoded
    assert method.payload_dtype == dtype and MeanPool(4).payload_dtype is None
    for given in ("int4", "float16"):
        config = InduceKVConfig(payload=method, payload_dtype=given)
        assert config.payload_dtype == config.replace(seed=1).payload_dtype == dtype


def test_spherical_kv_keeps_as_many_tokens_as_the_budget_holds_in_polar_codes(llava: "tiny.Backbone") -> None:
    [encoded] = llava.encode([tiny.example(1)], scorer=SphericalKV())
    tokens = []
    for bits in (4, 3):
        for budget in (0.05, "1536B", 5):
            method = SphericalKV(budget, bits=bits)
            small = method.compress(encoded)
            payload = Payload.store(small, method.payload_dtype)
            stored = [payload.keys, payload.values, payload.key_scales, payload.value_scales]
            used, token = sum(x.nbytes for x in stored), 2 * encoded.keys[:, :, 0, 0].numel() * (2 * bits + 2)
            full = 2 * encoded.keys.nbytes / encoded.tokens
            allowed = {0.05: full * int(0.05 * encoded.tokens), "1536B": 1536, 5: 5 * full}[budget]
            assert used == token * small.tokens
            assert allowed - token < used <= allowed or small.tokens in (1, encoded.tokens)
            tokens.append(small.tokens)
            chosen = encoded.scores[0, 0].topk(small.tokens).indices.sort().values
            assert torch.equal(small.keys[0, 0], encoded.keys[0, 0, chosen]), "numbers are rounded when stored"
    assert tokens[4] > tokens[1] > 1, "3 bits hold more tokens than 4"
    assert SphericalKV(1.0).compress(encoded).tokens == encoded.tokens
    odd = dataclasses.replace(encoded, keys=encoded.keys[..., :12], values=encoded.values[..., :12])
    with pytest.raises(ValueError, match=r"power of two.*int3"):
        SphericalKV().compress(odd)


@pytest.mark.parametrize(
    ("method", "dtype"),
    [
        (RotateKV(bits=3), "int3"),
        (RotateKV(MeanPool(6), bits=4), "levels4"),
        (RotateKV(ShiftKV(6), bits=2), "int2"),
        (SphericalKV(0.3), "polar4"),
        (SphericalKV(0.3, bits=3), "polar3"),
    ],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_methods_with_a_format_save_the_bytes_they_promise(
    llava: "tiny.Backbone", tmp_path: Path, method: Compression, dtype: str
) -> None:
    def learned(payload: Compression, dtype: str) -> InducedModel:
        config = InduceKVConfig.fast(payload=payload, budget="9KiB", payload_dtype=dtype, candidates=12, anchors=0)
        model = InducedModel.from_pretrained(llava, config=config)
        model.learn([tiny.example(i) for i in range(12)], task="things")
        return model

    model = learned(method, "int8")
    plain = method.method or NoCompression() if isinstance(method, RotateKV) else AsNumbers(method)
    same, whole = learned(plain, dtype), learned(plain, "int8")
    assert model.memory.payload_dtype == model.config.payload_dtype == dtype
    assert model.memory.nbytes == same.memory.nbytes <= 9 * 1024
    assert [entry.id for entry in model.memory.entries] == [entry.id for entry in same.memory.entries]
    assert len(model.memory) > len(whole.memory) > 0
    model.save_memory(tmp_path)
    loaded = KVMemory.from_pretrained(tmp_path, llava)
    assert loaded.payload_dtype == dtype and loaded.nbytes == model.memory.nbytes
    for before, after in zip(model.memory.entries, loaded.entries, strict=True):
        for a, b in zip(before.payload.load(), after.payload.load(), strict=True):
            assert (a is None and b is None) or torch.equal(a, b)
    asked = [tiny.example(5, answer=False)]
    answers = model.answer_all(asked, max_new_tokens=2)
    assert answers[0].sources
    model.memory = loaded
    assert model.answer_all(asked, max_new_tokens=2)[0].text == answers[0].text
    with model.attached([whole.memory]) as attachment:
        assert attachment is not None, "a memory in another format is only read"
    with pytest.raises(ValueError, match="stores payloads as int8"):
        InducedModel.from_pretrained(llava, memory=whole.memory, config=model.config)


@dataclasses.dataclass(frozen=True)
class AsNumbers(Compression):
    """A method's selection without its format."""

    method: Compression

    @property
    def scorer(self) -> LiveCompression | None:
        return self.method.scorer

    def compress(self, encoded: Encoded) -> Encoded:
        return self.method.compress(encoded)
