"""What projection, rounding, coverage and facility location promise beyond the optimum: limits, ties, sizes, dtypes."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inducekv.config import InduceKVConfig
from inducekv.selection import (
    SELECTORS,
    Coverage,
    Objective,
    SelectionProblem,
    orthonormal_projection,
    project,
    round_weights,
)
from inducekv.selection.facility_location import facility_order
from test_objective import Told


@pytest.mark.parametrize(
    ("weights", "costs", "total", "says"),
    [
        (torch.ones(2), torch.ones(2), math.inf, "finite number of at least 0, got inf"),
        (torch.ones(2), torch.ones(2), math.nan, "got nan"),
        (torch.ones(2), torch.tensor([1.0, -1.0]), 1, "positive, got -1"),
    ],
)
def test_what_cannot_be_projected_says_why(weights, costs, total, says):
    with pytest.raises(ValueError, match=says):
        project(weights, costs, total)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_projection_is_of_the_dtype_of_the_weights_and_has_no_gradient(dtype):
    for total in (1, 3):
        got = project(torch.tensor([0.5, 0.7, 0.1], dtype=dtype, requires_grad=True), torch.tensor([1, 1, 1]), total)
        assert got.dtype == dtype and not got.requires_grad
    assert project(torch.zeros(0), torch.zeros(0), 5).shape == (0,)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from([-1.0, 0.0, 0.25, 0.5, 1.0]), st.integers(1, 9)), max_size=9),
    st.integers(0, 40),
)
def test_rounding_takes_by_weight_then_place_what_still_fits_and_nothing_of_no_weight(entries, total):
    expected, left = [], total
    for weight, place in sorted((-weight, place) for place, (weight, _) in enumerate(entries)):
        if weight < 0 and entries[place][1] <= left:
            expected.append(place)
            left -= entries[place][1]
    weights, costs = (torch.tensor([each[i] for each in entries], dtype=torch.float64) for i in (0, 1))
    assert round_weights(weights, costs, total) == sorted(expected)


def coverage_of(costs, total, epsilon=0.1):
    keys = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    return Coverage(keys, torch.tensor(costs), total, epsilon)


def test_coverage_counts_the_part_of_the_budget_that_an_entry_spends():
    costs, weights = [100, 200, 50, 400, 10, 30], torch.tensor([1.0, 0.5, 0.0, 0.25, 1.0, 0.7])
    coverage = coverage_of(costs, 500)
    keys = coverage.projected.double()
    covariance = sum(c * float(w) / 500 * torch.outer(k, k) for c, w, k in zip(costs, weights, keys, strict=True))
    expected = -torch.logdet(covariance + 0.1 * torch.eye(4, dtype=torch.float64))
    assert float(coverage(weights)) == pytest.approx(float(expected), rel=1e-5)
    assert coverage(weights).dtype == torch.float32 and coverage(weights.double()).dtype == torch.float64
    doubled = coverage_of([2 * cost for cost in costs], 1000)
    assert float(doubled(weights)) == pytest.approx(float(coverage(weights)))
    assert float(coverage_of(costs, 0)(torch.zeros(6))) == pytest.approx(-4 * math.log(0.1)), "and no budget is none"


def test_a_projection_of_keys_is_that_of_a_gaussian_matrix_with_a_positive_diagonal():
    """Which makes it uniform over all of them (Mezzadri 2007)."""
    for seed in range(5):
        gaussian = torch.randn(7, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        projection = orthonormal_projection(3, 7, seed)
        triangular = projection.double() @ gaussian
        assert projection.dtype == torch.float32 and bool((triangular.diagonal() > 0).all())
        assert torch.allclose(triangular.tril(-1), torch.zeros(3, 3).double(), atol=1e-5)


def test_facility_location_keeps_the_first_of_each_task_in_its_own_order():
    """All answers differ, so that they change nothing; one task's keys are no neighbours of the other's."""
    generator = torch.Generator().manual_seed(3)
    keys = torch.nn.functional.normalize(torch.randn(24, 5, generator=generator), dim=-1)
    tasks = ["a" if i % 3 else "b" for i in range(24)]
    coverage = Coverage(keys, torch.ones(24), 10, 0.1)
    names = [str(i) for i in range(24)]
    objective = Objective(Told(), coverage, 1.0, 0.0)
    problem = SelectionProblem(objective, keys, torch.ones(24), 10, torch.zeros(2), tasks, names, names)
    expected = set()
    for task in ("a", "b"):
        members = [i for i in range(24) if tasks[i] == task]
        expected |= {members[place] for place in facility_order(keys[members])[:5]}
    chosen = SELECTORS["facility_location"](problem, InduceKVConfig(), torch.Generator()).chosen
    assert set(chosen) == expected and chosen == sorted(chosen)


def test_the_length_of_a_key_does_not_matter_to_facility_location():
    keys = torch.randn(20, 4, generator=torch.Generator().manual_seed(1))
    scaled = keys * torch.arange(1.0, 21)[:, None]
    assert facility_order(keys) == facility_order(scaled)
