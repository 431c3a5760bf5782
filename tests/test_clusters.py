"""Clusters of evicted tokens: their mass is never too much, and nothing is lost where there are enough of them."""

import pytest
import torch

from inducekv.compression.clusters import Clusters, farthest

SCALING = 0.5


def drawn(tokens: int = 20) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    keys, values, queries = (torch.randn(2, 3, tokens, 8, generator=draw) for _ in range(3))
    evicted = torch.rand(2, 3, tokens, generator=draw) < 0.7
    return keys, values, 3 * queries[:, :, :5], evicted


def exact(
    keys: torch.Tensor, values: torch.Tensor, queries: torch.Tensor, evicted: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    logits = (queries @ keys.transpose(2, 3) * SCALING).masked_fill(~evicted[:, :, None], -torch.inf)
    return logits.logsumexp(-1), logits.softmax(-1) @ values


@pytest.mark.parametrize("count", [1, 4, 10])
def test_the_mass_is_at_most_that_of_the_tokens(count: int) -> None:
    keys, values, queries, evicted = drawn()
    made = Clusters.of(keys, values, evicted, count)
    mass, _ = made.read(queries, SCALING)
    true, _ = exact(keys, values, queries, evicted)
    assert (mass <= true + 1e-5).all() and (mass < true - 0.01).any()
    assert torch.equal(made.counts.sum(-1), evicted.sum(-1).float())


def test_a_cluster_for_each_token_is_exact() -> None:
    keys, values, queries, evicted = drawn()
    mass, output = Clusters.of(keys, values, evicted, 20).read(queries, SCALING)
    true_mass, true_output = exact(keys, values, queries, evicted)
    torch.testing.assert_close(mass, true_mass, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(output, true_output, atol=1e-4, rtol=1e-4)


def test_nothing_evicted_has_no_mass_and_no_output() -> None:
    keys, values, queries, evicted = drawn()
    mass, output = Clusters.of(keys, values, torch.zeros_like(evicted), 3).read(queries, SCALING)
    assert (mass == -torch.inf).all() and (output == 0).all()


def test_tokens_alike_share_a_cluster_and_seeds_lie_apart() -> None:
    centres = torch.tensor([[4.0, 0.0], [0.0, 4.0], [-4.0, -4.0]])
    keys = (centres.repeat(5, 1) + 0.1 * torch.randn(15, 2, generator=torch.Generator().manual_seed(1)))[None, None]
    values = torch.arange(3.0).repeat(5)[None, None, :, None].expand(1, 1, 15, 2)
    evicted = torch.ones(1, 1, 15, dtype=torch.bool)
    assert {int(place) % 3 for place in farthest(keys, evicted, 3).flatten()} == {0, 1, 2}
    made = Clusters.of(keys, values, evicted, 3)
    assert made.counts.flatten().tolist() == [5, 5, 5]
    assert sorted(round(x, 4) for x in made.values[0, 0, :, 0].tolist()) == [0, 1, 2]
