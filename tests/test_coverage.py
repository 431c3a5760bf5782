"""Log-det coverage: the formula, its gradient, and what it prefers."""

import pytest
import torch

from inducekv.selection import Coverage, orthonormal_projection


def unit_keys(count, width, seed=0):
    keys = torch.randn(count, width, generator=torch.Generator().manual_seed(seed))
    return keys / keys.norm(dim=1, keepdim=True)


def test_projection_has_orthonormal_rows_and_depends_on_the_seed_alone():
    first, again, other = (orthonormal_projection(8, 20, seed) for seed in (3, 3, 4))
    assert torch.allclose(first @ first.T, torch.eye(8), atol=1e-5)
    assert torch.equal(first, again)
    assert not torch.allclose(first, other)
    assert orthonormal_projection(32, 5, 0).shape == (5, 5)


def test_value_equals_the_formula_with_equal_costs():
    keys, budget, epsilon = unit_keys(10, 6), 4.0, 1e-3
    coverage = Coverage.of_keys(keys, torch.ones(10), budget, dimensions=6, epsilon=epsilon, seed=1)
    weights = torch.rand(10, generator=torch.Generator().manual_seed(2))
    projected = keys @ orthonormal_projection(6, 6, 1).T
    matrix = sum(weights[i] / budget * torch.outer(projected[i], projected[i]) for i in range(10))
    expected = -torch.logdet(matrix.double() + epsilon * torch.eye(6).double())
    assert float(coverage(weights)) == pytest.approx(float(expected), rel=1e-5)


def test_gradient_matches_finite_differences():
    keys = unit_keys(7, 5).double()
    costs = torch.tensor([100, 200, 150, 400, 90, 120, 300])
    coverage = Coverage(keys, costs, 500.0, 1e-2)
    weights = torch.rand(7, generator=torch.Generator().manual_seed(1), dtype=torch.float64) * 0.8 + 0.1
    assert torch.autograd.gradcheck(coverage, weights.requires_grad_())


def test_spread_entries_cover_better_than_copies():
    keys = torch.cat([torch.eye(4), torch.eye(4)[:1].repeat(4, 1)])
    coverage = Coverage.of_keys(keys, torch.ones(8), 4, dimensions=4, epsilon=1e-3, seed=0)
    spread, copies = torch.tensor([1.0] * 4 + [0.0] * 4), torch.tensor([0.0] * 4 + [1.0] * 4)
    assert coverage(spread) < coverage(copies)
