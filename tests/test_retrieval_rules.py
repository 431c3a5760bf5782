"""Retrieval at its edges: a threshold just reached, two entries, many entries, no entries, other dtypes."""

import pytest
import torch
from torch.nn.functional import normalize

from inducekv.key_space import AT_ONCE, KeySpace
from inducekv.retrieval import Calibration, retrieve


def unit(rows: int, dim: int = 6, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


@pytest.mark.parametrize("count", [2, 3, AT_ONCE, AT_ONCE + 1])
def test_centering_is_taking_the_mean_off_both_sides(count: int) -> None:
    queries, keys = unit(3), unit(count, seed=1)
    mean = keys.mean(0)
    expected = normalize(queries - mean, dim=-1) @ normalize(keys - mean, dim=-1).T
    assert torch.allclose(KeySpace.of(keys, "centred").similarities(queries, keys), expected, atol=1e-6)
    assert not torch.allclose(KeySpace.of(keys, "raw").similarities(queries, keys), expected, atol=1e-3)


def test_keys_are_compared_in_the_dtype_of_the_question() -> None:
    queries, keys = unit(2), unit(4, seed=1)
    for dtype in (torch.float16, torch.float64):
        got = KeySpace.of(keys.to(dtype), "raw").similarities(queries, keys.to(dtype))
        assert got.dtype == torch.float32 and torch.allclose(got, queries @ keys.T, atol=1e-3)


def test_a_threshold_that_is_just_reached_is_reached() -> None:
    keys = torch.eye(3)
    for threshold, read in ((1.0, True), (1.0 + 1e-6, False)):
        got = retrieve(keys[:1], keys, 0.1, top_k=2, thresholds=torch.full((3,), threshold))
        assert got.valid.tolist() == [[read, read]]


def test_an_excluded_entry_does_not_reach_a_threshold_for_others() -> None:
    keys = torch.eye(3)
    exclude = torch.tensor([[True, False, False]])
    got = retrieve(keys[:1], keys, 0.1, top_k=None, exclude=exclude, thresholds=torch.full((3,), 0.5))
    assert not got.valid.any() and not got.alpha.any()


def test_an_empty_memory_with_thresholds_and_weights_gives_no_slots() -> None:
    got = retrieve(unit(2), torch.empty(0, 6), 0.1, top_k=None, weights=torch.empty(0), thresholds=torch.empty(0))
    assert got.indices.shape == got.alpha.shape == got.similarity.shape == got.valid.shape == (2, 0)


def test_entries_of_weight_zero_are_read_when_nothing_else_is_left() -> None:
    queries, keys = unit(1), unit(3, seed=1)
    got = retrieve(queries, keys, 0.3, top_k=2, weights=torch.zeros(3))
    expected = (queries @ keys.T / 0.3)[0].topk(2)
    assert got.indices[0].tolist() == expected.indices.flip(0).tolist()
    assert torch.allclose(got.alpha[0], expected.values.flip(0).softmax(0), atol=1e-5)


def test_some_rows_are_those_rows() -> None:
    got = retrieve(unit(4), unit(5, seed=1), 0.1, top_k=3)
    some = got.rows(torch.tensor([2, 0]))
    for name in ("indices", "alpha", "similarity", "valid"):
        assert torch.equal(getattr(some, name), getattr(got, name)[[2, 0]])


def test_calibration_starts_at_the_documented_values() -> None:
    start, same = Calibration.initial(2), Calibration.identity(2)
    assert start.tau.item() == same.tau.item() == pytest.approx(0.1)
    assert torch.allclose(start.lambdas, torch.full((2,), 0.95)) and torch.equal(same.lambdas, torch.ones(2))
    assert Calibration.initial(1, temperature=1e-6).tau.item() == pytest.approx(1e-6, rel=1e-3)
