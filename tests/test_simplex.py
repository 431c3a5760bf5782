"""The capped simplex: feasible, nearest, and the same as a slow reference."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inducekv.selection import indicator, project, round_weights

finite = st.floats(-3, 3, allow_nan=False)
cases = st.integers(1, 12).flatmap(
    lambda n: st.tuples(
        st.lists(finite, min_size=n, max_size=n),
        st.lists(st.integers(1, 5000), min_size=n, max_size=n),
        st.floats(0, 1),
    )
)


@settings(max_examples=200, deadline=None)
@given(cases)
def test_projection_is_feasible_and_no_feasible_point_is_nearer(case):
    values, costs, share = case
    v, c = torch.tensor(values, dtype=torch.float64), torch.tensor(costs)
    total = share * sum(costs)
    w = project(v, c, total)
    assert bool(((w >= 0) & (w <= 1)).all())
    assert float((w * c).sum()) == pytest.approx(total, rel=1e-9, abs=1e-6)
    # the variational inequality: (v - w) . (u - w) <= 0 for every feasible u
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        u = project(torch.rand(len(v), generator=generator, dtype=torch.float64) * 4 - 2, c, total)
        assert float((v - w) @ (u - w)) <= 1e-7


def test_equal_costs_give_the_simplex_of_the_paper():
    w = project(torch.tensor([0.9, 0.2, 0.1, -5.0]), torch.ones(4), 1)
    assert torch.allclose(w, torch.tensor([0.9, 0.2, 0.1, 0.2 / 3]) - 0.2 / 3, atol=1e-6)


def test_a_feasible_point_stays_where_it_is():
    w = torch.tensor([1.0, 0.5, 0.0, 0.25], dtype=torch.float64)
    costs = torch.tensor([100, 300, 50, 1000])
    assert torch.allclose(project(w, costs, float((w * costs).sum())), w, atol=1e-12)


def test_a_budget_for_everything_takes_everything_and_none_takes_nothing():
    costs = torch.tensor([3, 4])
    assert project(torch.tensor([-1.0, 0.0]), costs, 7).tolist() == [1.0, 1.0]
    assert project(torch.tensor([1.0, 0.7]), costs, 0).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("weights", "costs", "total", "says"),
    [
        ([0.5, 0.5], [1, 0], 1, "positive"),
        ([0.5, 0.5], [1, 1], -1, "at least 0"),
        ([0.5, float("nan")], [1, 1], 1, "finite"),
    ],
)
def test_what_cannot_be_projected_is_refused(weights, costs, total, says):
    with pytest.raises(ValueError, match=says):
        project(torch.tensor(weights), torch.tensor(costs), total)


def test_rounding_takes_the_heaviest_that_fit():
    weights, costs = torch.tensor([0.2, 0.9, 0.8, 0.0, 0.2]), torch.tensor([10, 60, 50, 1, 30])
    assert round_weights(weights, costs, 100) == [0, 1, 4]
    assert round_weights(weights, costs, 9) == []
    assert indicator([0, 4], 5).tolist() == [1, 0, 0, 0, 1]


@settings(max_examples=100, deadline=None)
@given(cases)
def test_rounding_never_exceeds_the_budget_and_leaves_no_room_for_a_weighted_entry(case):
    values, costs, share = case
    total = share * sum(costs)
    weights = torch.tensor(values).clamp(0, 1)
    chosen = round_weights(weights, torch.tensor(costs), total)
    spent = sum(costs[i] for i in chosen)
    assert spent <= total
    assert all(spent + costs[i] > total for i in range(len(costs)) if i not in chosen and weights[i] > 0)
