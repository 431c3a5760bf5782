"""How retrieval keys are compared: raw, centred, whitened."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.nn.functional import cosine_similarity, normalize

from inducekv.key_space import COMPONENTS, SHRINKAGE, KeySpace


def cone(count: int, dim: int, seed: int = 0) -> torch.Tensor:
    """Unit keys that share a large part and vary most along a few directions, as hidden states do."""
    draw = torch.Generator().manual_seed(seed)
    wide = torch.randn(count, 2, generator=draw) @ torch.randn(2, dim, generator=draw)
    return normalize(5 + wide + torch.randn(count, dim, generator=draw), dim=-1)


def test_raw_is_the_inner_product() -> None:
    keys = cone(6, 8)
    queries = cone(3, 8, seed=1)
    assert torch.equal(KeySpace.of(keys, "raw").similarities(queries, keys), queries @ keys.T)


def test_centred_removes_what_all_keys_share() -> None:
    keys, queries = cone(6, 8), cone(3, 8, seed=1)
    got = KeySpace.of(keys, "centred").similarities(queries, keys)
    mean = keys.mean(0)
    expected = cosine_similarity((queries - mean)[:, None], (keys - mean)[None], dim=-1)
    torch.testing.assert_close(got, expected)


@pytest.mark.parametrize(("count", "dim"), [(200, 16), (20, 64)])
def test_whitened_is_the_cosine_after_shrunk_whitening(count: int, dim: int) -> None:
    keys, queries = cone(count, dim), cone(3, dim, seed=1)
    got = KeySpace.of(keys, "whitened").similarities(queries, keys)
    centred = (keys - keys.mean(0)).double()
    variances, vectors = torch.linalg.eigh(centred.T @ centred / count)
    mean_variance = variances.sum() / dim
    chosen = variances.argsort(descending=True)[: min(COMPONENTS, count - 1, dim)]
    scales = torch.ones(dim, dtype=torch.double)
    shrunk = (1 - SHRINKAGE) * variances[chosen] + SHRINKAGE * mean_variance
    scales[chosen] = (SHRINKAGE * mean_variance / shrunk).sqrt()
    whiten = vectors @ torch.diag(scales) @ vectors.T
    a, b = (queries - keys.mean(0)).double() @ whiten, centred @ whiten
    torch.testing.assert_close(got.double(), cosine_similarity(a[:, None], b[None], dim=-1), atol=1e-4, rtol=0)


@given(count=st.integers(1, 40), seed=st.integers(0, 99), name=st.sampled_from(["raw", "centred", "whitened"]))
def test_similarities_are_finite_and_at_most_one(count: int, seed: int, name: str) -> None:
    keys = cone(count, 12, seed)
    keys[count // 2 :] = keys[0]  # equal keys too
    got = KeySpace.of(keys, name).similarities(cone(4, 12, seed + 1), keys)
    assert bool(got.isfinite().all()) and float(got.abs().max()) <= 1 + 1e-3


def test_one_key_is_compared_as_it_is() -> None:
    keys, queries = cone(1, 8), cone(3, 8, seed=1)
    assert torch.equal(KeySpace.of(keys, "whitened").similarities(queries, keys), queries @ keys.T)
