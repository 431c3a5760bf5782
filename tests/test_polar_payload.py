"""Payloads as a radius and angles: bytes, precision, and what lies where."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inducekv.compression.hadamard import hadamard
from inducekv.compression.polar_payload import POLAR_BITS, max_grid, signs
from inducekv.compression.storage import STORAGE_DTYPES, check_format, dequantise, quantise, stored_width


def relative(dtype: str, tensor: torch.Tensor) -> float:
    """Squared error over squared size."""
    back = dequantise(*quantise(tensor, dtype), dtype, tensor.shape[-1])
    return float((back - tensor).square().sum() / tensor.square().sum())


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@settings(deadline=None, max_examples=60)
@given(
    dtype=st.sampled_from(sorted(POLAR_BITS)),
    power=st.integers(1, 9),
    scale=st.sampled_from([1e-3, 1.0, 300.0]),
    seed=st.integers(0, 99),
)
def test_bytes_are_those_of_the_integers_and_a_radius_is_kept(dtype: str, power: int, scale: float, seed: int) -> None:
    width = 2**power
    tensor = scale * normal(3, 2, width, seed=seed)
    stored = quantise(tensor, dtype)
    bits = {"polar4": 4, "polar3": 3}[dtype]
    assert stored.values.shape == (3, 2, stored_width(width, dtype)) == (3, 2, (width * bits + 7) // 8)
    assert stored.values.dtype == STORAGE_DTYPES[dtype] == torch.uint8
    assert stored.scales is not None and stored.scales.shape == (3, 2) and stored.scales.dtype == torch.float16
    back = dequantise(*stored, dtype, width)
    assert torch.allclose(stored.scales.float(), tensor.norm(dim=-1), rtol=1e-3, atol=1e-6)
    assert torch.allclose(back.norm(dim=-1), tensor.norm(dim=-1), rtol=1e-3, atol=1e-6)
    again = dequantise(*quantise(back, dtype), dtype, width)
    assert torch.allclose(again, back, rtol=1e-2, atol=2e-3 * float(tensor.norm(dim=-1).max()))


@pytest.mark.parametrize(
    ("dtype", "errors"),
    [
        ("polar4", {2: 0.0031, 16: 0.0094, 64: 0.0103, 128: 0.0104, 256: 0.0105}),
        ("polar3", {2: 0.0131, 16: 0.0320, 64: 0.0353, 128: 0.0356, 256: 0.0357}),
    ],
)
def test_errors_on_normal_heads_are_those_of_the_grids(dtype: str, errors: dict[int, float]) -> None:
    """Level 1 loses (2 pi)^2 / 12 / 4^bits; each later level its variance times Max's distortion for so many bits."""
    for width, error in errors.items():
        tensor = normal(1000, width)
        assert relative(dtype, tensor) == pytest.approx(error, rel=0.05), width
        outlying = tensor * torch.where(torch.arange(width) == 1, 20.0, 1.0)
        assert relative(dtype, outlying) < 2.5 * error, "a large channel is spread before angles are taken"


def test_constant_heads_are_spread_too() -> None:
    """The rotation alone would put all of a constant head into one channel."""
    for width in (16, 64, 256):
        assert relative("polar4", torch.ones(1, width)) < 0.05


def test_polar_codes_are_written_as_the_format_says() -> None:
    """Signs, rotation, then level by level 5 and 3 (or 4 and 2) bits an angle, lowest bits first."""
    assert signs(16).tolist() == [-1, 1, -1, -1, 1, -1, -1, -1, -1, 1, 1, 1, -1, 1, 1, 1]
    assert torch.equal(signs(64)[:16], signs(16))
    plain = torch.tensor([[3.0, 0.0, 0.0, 4.0]])  # radii 3 and 4, level 1: angles 0 and a quarter turn
    stored = quantise(hadamard(plain) * signs(4), "polar4")
    angle = torch.atan2(torch.tensor(4.0), torch.tensor(3.0))
    third = int((max_grid(2, 3, angle) - angle).abs().argmin())
    assert stored.scales is not None and stored.scales.tolist() == [5.0]
    assert int.from_bytes(bytes(stored.values[0].tolist()), "little") == 0 | 8 << 5 | third << 10
    assert third == 4 and max_grid(2, 3, angle)[4] == pytest.approx(torch.pi / 4 + 0.337 * 0.2451)
    three = quantise(hadamard(plain) * signs(4), "polar3")
    assert int.from_bytes(bytes(three.values[0].tolist()), "little") == 0 | 4 << 4 | 2 << 8
    values = torch.tensor([[0b0000_0001, 0b0001_0101]], dtype=torch.uint8)
    back = hadamard(dequantise(values, torch.tensor([2.0]).half(), "polar4", 4) * signs(4))
    turn, last = torch.tensor([1.0, 8.0]) * torch.pi / 16, max_grid(2, 3, angle)[5]
    both = 2 * torch.stack([last.cos(), last.sin()])
    assert torch.allclose(back, torch.stack([both * turn.cos(), both * turn.sin()], -1).reshape(1, 4), atol=1e-5)


def test_zeros_stay_zeros() -> None:
    for dtype in POLAR_BITS:
        assert dequantise(*quantise(torch.zeros(2, 8), dtype), dtype, 8).eq(0).all()


@pytest.mark.parametrize("width", [1, 3, 12, 80, 96])
def test_heads_that_cannot_be_halved_down_to_one_radius_are_refused(width: int) -> None:
    for dtype in POLAR_BITS:
        with pytest.raises(ValueError, match=f"power of two; this model's is {width}: use payload_dtype='int3'"):
            quantise(torch.zeros(1, width), dtype)
        check_format(dtype, 256)
    check_format("levels4", width)
