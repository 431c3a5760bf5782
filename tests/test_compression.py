"""Compressions keep what they promise; storage formats keep the numbers to their precision."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inducekv.compression import (
    COMPRESSIONS,
    KeepAnswer,
    MeanPool,
    NoCompression,
    compression_named,
    dequantise,
    gaussian,
    quantise,
)
from inducekv.compression.bits import pack, unpack
from inducekv.compression.storage import stored_width
from inducekv.compression.trellis import LEVELS
from inducekv.config import InduceKVConfig
from inducekv.encoded import ANSWER, IMAGE, TEXT, Encoded

KINDS = [TEXT, IMAGE, IMAGE, IMAGE, TEXT, TEXT, ANSWER, ANSWER]


def encoded(kinds=KINDS, seed=0):
    generator = torch.Generator().manual_seed(seed)
    keys, values = torch.randn(2, 3, 2, len(kinds), 4, generator=generator)
    key = torch.nn.functional.normalize(torch.randn(6, generator=generator), dim=0)
    return Encoded(key, keys, values, torch.tensor(kinds, dtype=torch.int8), span=len(kinds), answer_length=2)


def test_none_changes_nothing():
    example = encoded()
    assert NoCompression().compress(example) is example


def test_keep_answer_keeps_exactly_the_answer():
    example = encoded()
    small = KeepAnswer().compress(example)
    assert torch.equal(small.keys, example.keys[:, :, 6:])
    assert torch.equal(small.values, example.values[:, :, 6:])
    assert small.kinds.tolist() == [ANSWER, ANSWER]
    assert (small.span, small.answer_length) == (2, example.answer_length), "an answer takes its own positions alone"
    assert KeepAnswer(1).compress(example).span == example.span
    middle = encoded([TEXT, ANSWER, ANSWER, TEXT])
    assert KeepAnswer().compress(middle).span == middle.span, "what follows the answer keeps its place"


def test_keep_answer_pools_the_rest_into_as_many_tokens_as_asked():
    example = encoded()
    small = KeepAnswer(context_tokens=2).compress(example)
    assert torch.allclose(small.keys[:, :, 0], example.keys[:, :, :3].mean(2), atol=1e-6)
    assert torch.allclose(small.values[:, :, 1], example.values[:, :, 3:6].mean(2), atol=1e-6)
    assert torch.equal(small.keys[:, :, 2:], example.keys[:, :, 6:])
    assert small.kinds.tolist() == [IMAGE, TEXT, ANSWER, ANSWER]


def test_keep_answer_with_more_tokens_than_context_keeps_everything():
    example = encoded()
    assert torch.allclose(KeepAnswer(context_tokens=50).compress(example).keys, example.keys)


def test_keep_answer_needs_an_answer():
    with pytest.raises(ValueError, match="no answer tokens"):
        KeepAnswer().compress(encoded([TEXT, IMAGE]))


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 30), st.integers(1, 12))
def test_mean_pool_gives_the_length_asked_and_keeps_the_mean(length, tokens):
    example = encoded([TEXT] * (length - 1) + [ANSWER], seed=length)
    small = MeanPool(tokens).compress(example)
    assert small.tokens == min(length, tokens)
    assert len(small.kinds) == small.tokens
    if length % tokens == 0 or length <= tokens:
        assert torch.allclose(small.keys.mean(2), example.keys.mean(2), atol=1e-5)


@pytest.mark.parametrize("name", COMPRESSIONS)
def test_every_compression_keeps_frame_key_and_dtype(name):
    example = encoded()
    compression = compression_named(InduceKVConfig(payload=name, payload_tokens=3))
    if compression.scorer is not None:  # then examples are encoded with its scores
        scores = torch.rand(example.keys.shape[:3], generator=torch.Generator().manual_seed(1))
        example = dataclasses.replace(example, scores=scores)
    small = compression.compress(example)
    assert 1 <= small.tokens <= example.tokens
    assert small.keys.shape == small.values.shape
    assert small.keys.dtype == example.keys.dtype
    assert small.tokens <= small.span <= example.span
    assert torch.equal(small.key, example.key)


def test_a_compression_object_may_be_given_itself():
    method = KeepAnswer(context_tokens=1)
    assert compression_named(InduceKVConfig(payload=method)) is method


@pytest.mark.parametrize("make", [lambda: MeanPool(0), lambda: KeepAnswer(-1)])
def test_impossible_token_counts_are_refused(make):
    with pytest.raises(ValueError, match="payload_tokens"):
        make()


@pytest.mark.parametrize(
    ("dtype", "error"),
    [
        ("float32", 0.0),
        ("float16", 1e-3),
        ("bfloat16", 8e-3),
        ("int8", 9e-3),
        ("int4", 0.075),
        ("int3", 0.3),
        ("int2", 0.55),
        ("levels4", 0.12),
        ("polar4", 0.16),
        ("polar3", 0.33),
    ],
)
def test_storage_error_is_within_the_format_relative_to_the_largest_number_of_the_head(dtype, error):
    tensor = (
        torch.randn(5, 3, 2, 16, generator=torch.Generator().manual_seed(0))
        * torch.tensor([1e-2, 1, 300])[:, None, None]
    )
    stored = quantise(tensor, dtype)
    back = dequantise(*stored, dtype, 16)
    assert back.dtype == torch.float32
    assert (stored.scales is not None) == ("float" not in dtype)
    assert bool(((back - tensor).abs() <= error * tensor.abs().amax(-1, keepdim=True)).all())


def test_int8_takes_a_quarter_of_float32_and_zeros_stay_zeros():
    stored = quantise(torch.zeros(2, 1, 1, 8), "int8")
    assert stored.values.element_size() == 1
    assert stored.scales.shape == (2, 1, 1) and stored.scales.dtype == torch.float16
    assert dequantise(*stored, "int8", 8).eq(0).all()
    assert dequantise(*quantise(torch.zeros(2, 8), "int4"), "int4", 8).eq(0).all()


@pytest.mark.parametrize(("dtype", "bits"), [("int4", 4), ("int3", 3), ("int2", 2), ("levels4", 4)])
@pytest.mark.parametrize("head_dim", [1, 3, 8, 9])
def test_codes_lie_packed_and_come_back(dtype, bits, head_dim):
    codes = torch.randint(0, 2**bits, (5, 2, head_dim), generator=torch.Generator().manual_seed(1)).to(torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape[-1] == stored_width(head_dim, dtype) == -(-head_dim * bits // 8)
    assert torch.equal(unpack(packed, bits, head_dim), codes)
    first = sum(int(code) << (bits * i) for i, code in enumerate(codes[0, 0, : 8 // bits]))
    assert int(packed[0, 0, 0]) == first, "the first code lies in the lowest bits"
    if dtype != "int2":  # a path in a trellis that has no error need not be found again
        once = dequantise(*quantise(torch.randn(4, head_dim), dtype), dtype, head_dim)
        assert torch.allclose(dequantise(*quantise(once, dtype), dtype, head_dim), once, rtol=2e-3, atol=1e-3)


@pytest.mark.parametrize(("dtype", "best"), [("int2", 0.084), ("int3", 0.03454), ("levels4", 0.009497)])
def test_levels_of_a_normal_head_are_near_the_best_that_so_many_can_do(dtype, best):
    """Max (1960), of the variance, for many numbers (2 bits: of `trellis`); a fitted scale gains a little in few."""
    tensor = torch.randn(400, 64, generator=torch.Generator().manual_seed(0))
    error = (dequantise(*quantise(tensor, dtype), dtype, 64) - tensor).square().mean(-1)
    assert 0.7 * best < float(error.mean()) < best
    tensor[:, 5] = 30.0
    shares = (dequantise(*quantise(tensor, dtype), dtype, 64) - tensor).square().sum(-1) / tensor.square().sum(-1)
    assert float(shares.mean()) < best + 0.01, "a large channel is spread before levels are chosen"


def test_three_bits_are_written_as_the_format_says():
    levels = [-2.1520, -1.3439, -0.7560, -0.2451, 0.2451, 0.7560, 1.3439, 2.1520]
    rotation = torch.kron(HADAMARD, torch.tensor([[1, 1], [1, -1]])) / 2**0.5
    stored = quantise(torch.tensor([levels]) @ rotation, "int3")
    assert stored.scales.tolist() == [1.0] and unpack(stored.values, 3, 8).tolist() == [list(range(8))]
    assert torch.allclose(dequantise(*stored, "int3", 8) @ rotation, torch.tensor([levels]), atol=1e-5)


def test_four_bits_of_levels_are_written_as_the_format_says():
    upper = [0.1284, 0.3881, 0.6568, 0.9424, 1.2562, 1.6180, 2.0690, 2.7326]
    levels = [*(-x for x in reversed(upper)), *upper]
    pair = torch.tensor([[1, 1], [1, -1]]) / 2**0.5
    rotation = torch.kron(torch.kron(HADAMARD, pair), pair)
    stored = quantise(torch.tensor([levels]) @ rotation, "levels4")
    assert stored.scales.tolist() == [1.0] and stored.values.tolist() == [list(bytes.fromhex("1032547698badcfe"))]
    assert torch.allclose(dequantise(*stored, "levels4", 16) @ rotation, torch.tensor([levels]), atol=1e-5)


@pytest.mark.parametrize("head_dim", [16, 64, 256])
def test_four_bits_of_levels_lose_less_than_even_steps_in_the_same_bytes(head_dim):
    """On normal heads, and on heads with a channel that stands out, as keys have them."""
    plain = torch.randn(400, head_dim, generator=torch.Generator().manual_seed(0))
    outlying = plain * torch.where(torch.arange(head_dim) == 3, 20.0, 1.0)
    for tensor in (plain, outlying):
        stored = {dtype: quantise(tensor, dtype) for dtype in ("int4", "levels4")}
        assert stored["int4"].values.shape == stored["levels4"].values.shape
        even, levels = ((dequantise(*stored[d], d, head_dim) - tensor).square().sum() for d in stored)
        assert float(levels) < 0.7 * float(even)


def test_two_bits_are_written_as_the_format_says():
    """The first code in the lowest bits, levels looked up by it and the two before, in the frame of the rotation."""
    back = dequantise(torch.tensor([[0b00_01_10_11]], dtype=torch.uint8), torch.tensor([2.0]).half(), "int2", 4)
    levels = [LEVELS[0b01_00_11], LEVELS[0b00_11_10], LEVELS[0b11_10_01], LEVELS[0b10_01_00]]
    assert torch.allclose(back @ HADAMARD, 2 * torch.tensor([levels]), atol=1e-6)
    stored = quantise(back, "int2")
    assert stored.values.shape == (1, 1) and stored.scales.shape == (1,)
    assert dequantise(*quantise(torch.zeros(2, 8), "int2"), "int2", 8).eq(0).all()


HADAMARD = torch.tensor([[1, 1, 1, 1], [1, -1, 1, -1], [1, 1, -1, -1], [1, -1, -1, 1]]) / 2


def test_numbers_that_cannot_be_stored_are_refused():
    with pytest.raises(ValueError, match="too large for float16"):
        quantise(torch.tensor([[1e6]]), "float16")
    for dtype in ("int8", "int4", "int3", "int2", "levels4", "polar4", "polar3"):
        with pytest.raises(ValueError, match=f"too large for {dtype}"):
            quantise(torch.full((1, 2), 1e8), dtype)
        with pytest.raises(ValueError, match="need their scales"):
            dequantise(quantise(torch.ones(1, 2), dtype).values, None, dtype, 2)
    with pytest.raises(ValueError, match="not finite"):
        quantise(torch.tensor([[float("nan")]]), "int8")
    with pytest.raises(ValueError, match="one of"):
        quantise(torch.zeros(1, 1), "int5")


@pytest.mark.parametrize("bits", [3, 4])
def test_levels_do_not_depend_on_how_much_is_encoded_at_once(bits: int, monkeypatch: pytest.MonkeyPatch) -> None:
    x = torch.randn(7, 3, 2, 16, generator=torch.Generator().manual_seed(0))
    whole = gaussian.encode_levels(x, bits)
    monkeypatch.setattr(gaussian, "AT_ONCE", 100)
    parts = gaussian.encode_levels(x, bits)
    assert torch.equal(whole.codes, parts.codes) and torch.equal(whole.scales, parts.scales)
    assert gaussian.encode_levels(x[:0], bits).codes.shape == (0, 3, 2, 16)
