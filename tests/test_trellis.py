"""Two bits a number in a trellis: what codes stand for, how near they come, and how many bytes they take."""

import itertools

import pytest
import torch

from inducekv.compression.gaussian import decode_levels, encode_levels
from inducekv.compression.storage import dequantise, quantise
from inducekv.compression.trellis import FEWEST, LEVELS, STATES, decode_trellis, encode_trellis


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def squared_error(x: torch.Tensor) -> float:
    return float((decode_trellis(encode_trellis(x)) - x).square().mean())


def test_levels_are_mirrored_and_looked_up_by_three_codes_in_a_ring() -> None:
    assert len(LEVELS) == STATES and all(a == -b for a, b in zip(LEVELS, reversed(LEVELS), strict=True))
    codes = torch.tensor([[3, 0, 2, 1, 1, 2]], dtype=torch.uint8)
    places = [16 * 1 + 4 * 2 + 3, 16 * 2 + 4 * 3 + 0, 16 * 3 + 2, 4 * 2 + 1, 16 * 2 + 4 + 1, 16 + 4 + 2]
    assert decode_trellis(codes).tolist() == [pytest.approx([LEVELS[place] for place in places])]
    opposite = decode_trellis(3 - codes)
    assert torch.equal(opposite, -decode_trellis(codes))


@pytest.mark.parametrize("width, most", [(16, 0.09), (24, 0.088), (32, 0.088), (64, 0.087), (128, 0.086), (256, 0.086)])
def test_codes_come_nearer_to_normal_numbers_than_four_levels_can(width: int, most: float) -> None:
    assert squared_error(normal(800, width)) < most < 0.1175


@pytest.mark.parametrize("width", range(1, 9))
def test_short_heads_are_coded_as_well_as_codes_can(width: int) -> None:
    x = normal(20, width, seed=width)
    every = torch.tensor(list(itertools.product(range(4), repeat=width)), dtype=torch.uint8)
    best = (decode_trellis(every) - x[:, None]).square().sum(-1).amin(-1)
    made = (decode_trellis(encode_trellis(x)) - x).square().sum(-1)
    if width < FEWEST:
        torch.testing.assert_close(made, best)
    else:
        assert float(made.mean()) < 2 * float(best.mean()) and bool((made >= best - 1e-5).all())


def test_heads_are_coded_by_themselves_and_none_is_no_mistake() -> None:
    x = normal(5, 2, 32)
    assert torch.equal(encode_trellis(x)[3, 1], encode_trellis(x[3, 1]))
    assert encode_trellis(x[:0]).shape == (0, 2, 32)


@pytest.mark.parametrize("scale", [1e-4, 1.0, 300.0])
def test_stored_heads_keep_their_scale(scale: float) -> None:
    x = scale * normal(300, 32) * torch.linspace(0.2, 3, 32)
    error = (decode_levels(encode_levels(x, 2), 2) - x).square().mean() / x.square().mean()
    assert float(error) < 0.09
    stored = quantise(x, "int2")
    assert (stored.values.shape, stored.values.dtype) == ((300, 8), torch.uint8)
    assert stored.scales is not None and stored.scales.shape == (300,)
    assert torch.equal(dequantise(*stored, "int2", 32), decode_levels(encode_levels(x, 2), 2))
    zeros = torch.zeros(2, 32)
    assert torch.equal(dequantise(*quantise(zeros, "int2"), "int2", 32), zeros)
