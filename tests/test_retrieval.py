"""Which entries are read, in which order, with which weight."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

from inducekv.retrieval import Calibration, retrieve


def unit(rows: int, dim: int = 6, seed: int = 0) -> torch.Tensor:
    return normalize(torch.randn(rows, dim, generator=torch.Generator().manual_seed(seed)), dim=-1)


def test_alpha_is_the_papers_softmax_over_all_entries() -> None:
    queries, keys = unit(3), unit(5, seed=1)
    got = retrieve(queries, keys, 0.2, top_k=None)
    expected = (queries @ keys.T / 0.2).softmax(-1)
    assert torch.allclose(got.alpha, expected.gather(1, got.indices), atol=1e-6)
    assert got.valid.all() and torch.equal(got.indices[:, -1], expected.argmax(-1))


@settings(deadline=None, max_examples=60)
@given(
    rows=st.integers(1, 4),
    count=st.integers(1, 7),
    top_k=st.one_of(st.none(), st.integers(1, 9)),
    seed=st.integers(0, 99),
    excluded=st.integers(0, 7),
    threshold=st.floats(-1, 1),
)
def test_what_always_holds(rows: int, count: int, top_k: int, seed: int, excluded: int, threshold: float) -> None:
    queries, keys = unit(rows, seed=seed), unit(count, seed=seed + 100)
    exclude = torch.zeros(rows, count, dtype=torch.bool)
    exclude[:, :excluded] = True
    got = retrieve(queries, keys, 0.1, top_k=top_k, exclude=exclude, thresholds=torch.full((count,), threshold))
    k = min(count, top_k or count)
    assert got.indices.shape == got.alpha.shape == got.similarity.shape == got.valid.shape == (rows, k)
    similarity = queries @ keys.T
    assert torch.allclose(got.similarity, similarity.gather(1, got.indices))
    assert not exclude.gather(1, got.indices)[got.valid].any(), "an excluded entry was read"
    assert (got.alpha[~got.valid] == 0).all()
    for row in range(rows):
        best = similarity[row].masked_fill(exclude[row], -math.inf).amax()
        valid = got.valid[row]
        if best > -math.inf and best >= threshold:
            assert valid[-1] and got.alpha[row].sum() == pytest.approx(1, abs=1e-5)
            assert got.similarity[row, -1] == pytest.approx(best.item())
            assert valid.sum() == min(k, int((~exclude[row]).sum()))
            ordered = got.similarity[row][valid]
            assert (ordered.diff() >= 0).all(), "the best entry must be the last"
        else:
            assert not valid.any()


def test_each_entry_is_judged_by_its_own_threshold() -> None:
    keys, queries = torch.eye(3), torch.eye(3)[[0, 1]]
    got = retrieve(queries, keys, 0.1, top_k=2, thresholds=torch.tensor([2.0, 0.5, 0.5]))
    assert got.valid.tolist() == [[False, False], [True, True]]


def test_a_nearer_entry_of_a_stricter_task_does_not_turn_a_question_away() -> None:
    """It did when only the best entry was asked: with ten tasks about the same pictures one question in ten."""
    keys = torch.nn.functional.normalize(torch.tensor([[1.0, 0.1], [1.0, 0.5], [0.0, 1.0]]), dim=-1)
    query, thresholds = torch.tensor([[1.0, 0.0]]), torch.tensor([0.999, 0.8, 0.8])
    got = retrieve(query, keys, 0.1, top_k=2, thresholds=thresholds)
    assert got.indices.tolist() == [[1, 0]] and got.valid.all()
    assert not retrieve(query, keys, 0.1, top_k=1, thresholds=thresholds).valid.any(), "only what would be read counts"


def test_selection_weights_scale_alpha_and_their_gradient_is_right() -> None:
    queries, keys = unit(2).double(), unit(4, seed=1).double()
    weights = torch.tensor([0.5, 1.0, 0.0, 0.25], dtype=torch.float64)
    got = retrieve(queries, keys, 0.3, top_k=None, weights=weights)
    raw = weights * (queries @ keys.T / 0.3).exp()
    expected = (raw / raw.sum(-1, keepdim=True)).gather(1, got.indices)
    assert torch.allclose(got.alpha, expected, atol=1e-7)
    assert (got.indices[:, 0] == 2).all(), "weight 0 comes last in line"

    def alpha(weights: torch.Tensor, tau: torch.Tensor) -> torch.Tensor:
        return retrieve(queries, keys, tau, top_k=3, weights=weights).alpha

    point = (torch.tensor([0.5, 1.0, 0.1, 0.25]).double().requires_grad_(), torch.tensor(0.3).double().requires_grad_())
    assert torch.autograd.gradcheck(alpha, point)


def test_weights_can_keep_an_entry_out_of_the_top_k() -> None:
    keys = torch.eye(3)[[0, 0, 1]]
    got = retrieve(torch.eye(3)[:1], keys, 0.1, top_k=1, weights=torch.tensor([0.0, 0.5, 1.0]))
    assert got.indices.tolist() == [[1]]


def test_an_empty_memory_gives_no_slots() -> None:
    got = retrieve(unit(2), torch.empty(0, 6), 0.1, top_k=4)
    assert got.indices.shape == (2, 0) and not got.valid.any()


def test_calibration_starts_where_it_is_told() -> None:
    start = Calibration.initial(3, temperature=0.05, scale=0.9)
    assert start.tau.item() == pytest.approx(0.05) and torch.allclose(start.lambdas, torch.full((3,), 0.9))
    same = Calibration.identity(3, temperature=2.0)
    assert torch.equal(same.lambdas, torch.ones(3)) and same.tau.item() == pytest.approx(2.0)
    for temperature, scale in ((0.0, 0.5), (-1.0, 0.5), (0.1, 0.0), (0.1, 1.0)):
        with pytest.raises(ValueError, match="temperature must be > 0"):
            Calibration.initial(3, temperature, scale)
