"""Compression methods by themselves: published numbers, what is kept, what codes lose, and payloads."""

import math

import pytest
import torch

import tiny
from inducekv.compression import (
    AttentionSum,
    Compression,
    KVPressScorer,
    MeanPool,
    PrefixKV,
    RetentiveKV,
    RotateKV,
    ShiftKV,
    SphericalKV,
    WindowKV,
    mean_profile,
)
from inducekv.compression.bits import decode, encode, pack, packed_bytes, unpack
from inducekv.compression.budget import tokens_within
from inducekv.compression.hadamard import hadamard
from inducekv.compression.layer import highest
from inducekv.compression.polar import key_bytes, polar_decode, polar_encode, polar_logits
from inducekv.compression.prefix_kv import shared_out
from inducekv.compression.window_kv import group_budgets, group_of
from inducekv.config import InduceKVConfig
from inducekv.model import InducedModel


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


# -- budgets and selection


@pytest.mark.parametrize(
    ("budget", "tokens", "allowed"),
    [(5, 20, 5), (50, 20, 20), (0.3, 20, 6), (0.7, 10, 7), (1.0, 7, 7), (1e-6, 9, 1), ("1KiB", 100, 10), ("10B", 9, 1)],
)
def test_budgets_are_read_as_tokens_fractions_or_bytes(budget: float, tokens: int, allowed: int) -> None:
    assert tokens_within(budget, tokens, 100.0) == allowed


@pytest.mark.parametrize("make", [ShiftKV, AttentionSum, WindowKV, SphericalKV, RetentiveKV])
@pytest.mark.parametrize(
    ("budget", "error"), [(0, ValueError), (1.5, ValueError), ("none", ValueError), (None, TypeError)]
)
def test_impossible_budgets_are_refused(make: type, budget: object, error: type[Exception]) -> None:
    with pytest.raises(error, match=r"budget|size"):
        make(budget)


@pytest.mark.parametrize(
    "make",
    [
        lambda: ShiftKV(gamma=0.0),
        lambda: ShiftKV(groups=3),
        lambda: ShiftKV(nucleus=1.5),
        lambda: WindowKV(task="translation"),
        lambda: WindowKV(beta=2.0),
        lambda: PrefixKV(drop_ratios=(0.5, 1.0)),
        lambda: RotateKV(bits=5),
        lambda: RotateKV(RetentiveKV()),
        lambda: SphericalKV(smooth=4),
        lambda: SphericalKV(bits=2),
        lambda: RetentiveKV(mix=2.0),
        lambda: RetentiveKV(readout="tanh"),
        lambda: RetentiveKV(clusters=0),
        lambda: RetentiveKV(relevance=0.0),
        lambda: ShiftKV(unlike=1.5),
    ],
)
def test_impossible_arguments_are_refused(make: object) -> None:
    with pytest.raises((ValueError, TypeError), match=r"must|RotateKV|type"):  # types are checked while tests run
        make()


@pytest.mark.parametrize("make", [lambda: PrefixKV(MeanPool()), lambda: KVPressScorer(), lambda: RotateKV(3)])
def test_what_is_no_method_is_refused(make: object) -> None:
    with pytest.raises(TypeError):
        make()


def test_the_highest_scored_real_tokens_stay_in_order() -> None:
    scores = torch.tensor([[[9.0, 1.0, 5.0, 5.0, 2.0]], [[9.0, 9.0, 1.0, 3.0, 2.0]]])
    real = torch.tensor([[True] * 5, [False, False, True, True, True]])
    chosen = highest(scores, real, torch.tensor([3, 2]))
    assert chosen.tolist() == [[[0, 2, 3]], [[-1, 3, 4]]]
    assert highest(scores, real, torch.tensor([2, 2]))[0].tolist() == [[0, 3]], "of equals the later one stays"


# -- published numbers


def test_shift_kv_votes_as_its_code_and_as_its_paper_have_it() -> None:
    mass = torch.tensor([[[[0.5, 0.3, 0.15, 0.05], [0.97, 0.01, 0.01, 0.01]]]])
    assert ShiftKV(nucleus=0.8)._votes(mass).tolist() == [[[[True, True, False, False], [False] * 4]]]
    minimal = ShiftKV(nucleus=0.94, minimal=True)._votes(mass)
    assert minimal.tolist() == [[[[True, True, True, False], [True, False, False, False]]]]


@pytest.mark.parametrize(
    ("mean", "budgets"),
    [(2048, [2926, 2341, 1756, 1170]), (1024, [1463, 1171, 879, 585]), (512, [732, 586, 440, 292])],
)
def test_window_kv_group_budgets_are_the_published_ones(mean: int, budgets: list[int]) -> None:
    assert group_budgets(mean, 4, 8, 14.0) == budgets
    assert group_budgets(mean, 1, 8, 14.0) == [mean]


@pytest.mark.parametrize(("layers", "sizes"), [(32, [8] * 4), (28, [7] * 4), (3, [3]), (26, [8, 9, 9])])
def test_window_kv_groups_cover_all_layers(layers: int, sizes: list[int]) -> None:
    groups = [group_of(layer, layers, 8) for layer in range(layers)]
    assert [groups.count(group) for group in range(max(groups) + 1)] == sizes


def test_window_kv_scores_the_best_half_or_all_of_a_window() -> None:
    seen = torch.tensor([[4.0, 0, 0, 0, 1, 1, 1, 1, 9, 9]])
    assert WindowKV(window=4)._windows(seen, 2)[:8].tolist() == [2.0] * 4 + [1.0] * 4
    mean = WindowKV(window=4, task="aggregation")._windows(seen, 2)
    assert mean[:8].tolist() == [1.0] * 8 and bool(mean[8:].isinf().all())


def test_prefix_kv_gives_concentrated_layers_fewer_tokens_and_the_total_is_exact() -> None:
    flat, peaked = torch.arange(1, 101) / 100, 1 - 0.5 ** torch.arange(1, 101)
    for total in (2, 30, 77, 150, 200):
        counts = shared_out([flat, peaked.clamp_max(1)], total)
        assert sum(counts) == total and min(counts) >= 1
    few, fewer = shared_out([flat, peaked], 60)
    assert few > fewer and peaked[fewer - 2] <= flat[few - 1] <= peaked[fewer - 1]


def test_prefix_kv_profiles_have_the_mean_that_is_asked() -> None:
    published = (0.114, 0.240, 0.345, 0.576, 0.569, 0.701)
    profile = mean_profile([published, published], 0.5)
    assert sum(profile) / 6 == pytest.approx(0.5)
    assert profile[0] / profile[5] == pytest.approx(0.114 / 0.701)
    with pytest.raises(ValueError, match="same number of layers"):
        mean_profile([published, (0.5,)], 0.5)


# -- codes


@pytest.mark.parametrize("width", [2, 16, 24, 64, 128])
def test_hadamard_is_the_dense_matrix_and_its_own_inverse(width: int) -> None:
    block = width & -width
    dense = torch.ones(1, 1)
    while len(dense) < block:
        dense = torch.cat([torch.cat([dense, dense], 1), torch.cat([dense, -dense], 1)])
    x = normal(3, width)
    expected = (x.unflatten(-1, (-1, block)) @ (dense / math.sqrt(block))).flatten(-2)
    assert torch.allclose(hadamard(x), expected, atol=1e-5)
    assert torch.allclose(hadamard(hadamard(x)), x, atol=1e-5)


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6, 8])
@pytest.mark.parametrize("count", [1, 5, 8, 24])
def test_packing_loses_nothing_and_leaves_no_gap(bits: int, count: int) -> None:
    codes = torch.randint(2**bits, (3, count), generator=torch.Generator().manual_seed(bits), dtype=torch.uint8)
    packed = pack(codes, bits)
    assert packed.shape == (3, packed_bytes(count, bits))
    assert torch.equal(unpack(packed, bits, count), codes)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
def test_codes_are_within_half_a_step_and_constant_groups_are_exact(bits: int) -> None:
    x = normal(7, 32) * torch.tensor([1e-3, 1, 50])[:, None, None]
    codes = encode(x, bits, group=16)
    ranges = x.unflatten(-1, (-1, 16))
    step = (ranges.amax(-1) - ranges.amin(-1)) / (2**bits - 1)
    error = (decode(codes, bits, 32) - x).unflatten(-1, (-1, 16)).abs().amax(-1)
    rounding = 2e-3 * ranges.abs().amax(-1) + 2.0 ** (bits - 24)  # of float16 steps and minima
    assert bool((error <= 0.5 * step + rounding).all())
    same = torch.full((2, 16), 0.625)
    assert torch.allclose(decode(encode(same, bits, group=16), bits, 16), same, atol=1e-3)
    assert codes.nbytes == 3 * 7 * (packed_bytes(32, bits) + 2 * 4)


@pytest.mark.parametrize(
    ("bits", "published"),
    [((6, 5, 5, 4, 4), 0.0017), ((4, 3, 3, 3, 2), 0.0199), ((4, 2, 2, 2, 2), 0.039), ((3, 2, 2, 2, 2), 0.085)],
)
def test_polar_codes_lose_what_the_simulation_says(bits: tuple[int, ...], published: float) -> None:
    """Relative squared error of logits of normal queries and keys, 128 dimensions (specs section 6)."""
    queries, keys = normal(64, 128, seed=1), normal(512, 128, seed=2)
    codes = polar_encode(keys, bits)
    exact = queries @ keys.T
    got = polar_logits(queries, codes, bits)
    assert float((got - exact).square().mean() / exact.square().mean()) == pytest.approx(published, rel=0.35)
    assert torch.allclose(got, queries @ polar_decode(codes, 128, bits).T, atol=1e-3)
    assert 2 * codes.radii.shape[-1] + codes.angles.shape[-1] == key_bytes(128, bits)


def test_polar_codes_with_many_bits_are_nearly_exact_whatever_the_width() -> None:
    for width in (16, 24, 96):
        keys = normal(40, width, seed=3)
        error = (polar_decode(polar_encode(keys, (8, 8)), width, (8, 8)) - keys).norm() / keys.norm()
        assert float(error) < 0.05
    with pytest.raises(ValueError, match="even"):
        polar_encode(normal(2, 7), (4,))


# -- payloads

PAYLOADS: dict[str, Compression] = {
    "shift_kv": ShiftKV(4, proxies=64, groups=8),
    "attention_sum": AttentionSum(4),
    "window_kv": WindowKV(4, window=2, suffix=2),
    "rotate_kv_over_shift_kv": RotateKV(ShiftKV(4, proxies=64, groups=8), bits=4),
    "rotate_kv_over_mean_pool": RotateKV(MeanPool(4), bits=2),
}


@pytest.mark.parametrize("name", PAYLOADS)
def test_payloads_keep_their_budget_and_frame(backbone: "tiny.Backbone", name: str) -> None:
    method = PAYLOADS[name]
    scorer = method.method if isinstance(method, RotateKV) else method
    examples = [tiny.example(1), tiny.example(2)]
    scored = backbone.encode(examples, scorer=None if isinstance(scorer, MeanPool) else scorer)
    for encoded in scored:
        small = method.compress(encoded)
        assert small.tokens == 4 and len(small.kinds) == 4
        assert (small.keys.dtype, small.keys.shape[:2]) == (encoded.keys.dtype, encoded.keys.shape[:2])
        assert small.tokens <= small.span <= encoded.span


def test_payload_scores_are_those_of_the_example_alone_and_the_highest_stay(backbone: "tiny.Backbone") -> None:
    method = AttentionSum(5)
    together = backbone.encode([tiny.example(1), tiny.example(4)], scorer=method)
    for example, encoded in zip((tiny.example(1), tiny.example(4)), together, strict=True):
        [alone] = backbone.encode([example], scorer=method)
        assert encoded.scores is not None and alone.scores is not None
        assert torch.allclose(encoded.scores, alone.scores, atol=1e-4)
        small = method.compress(encoded)
        assert small.scores is not None
        assert torch.equal(small.scores.sort(-1).values, encoded.scores.sort(-1).values[..., -5:])
        chosen = encoded.scores[0, 0].topk(5).indices.sort().values
        assert torch.equal(small.keys[0, 0], encoded.keys[0, 0, chosen])


def test_payloads_without_scores_and_methods_for_live_caches_are_refused(llava: "tiny.Backbone") -> None:
    [encoded] = llava.encode([tiny.example(1)])
    assert encoded.scores is None
    with pytest.raises(ValueError, match="scorer=ShiftKV"):
        ShiftKV(4).compress(encoded)
    with pytest.raises(ValueError, match="scorer=AttentionSum"):
        PrefixKV().compress(encoded)
    with pytest.raises(TypeError, match="payload"):
        RetentiveKV().compress(encoded)


@pytest.mark.parametrize("name", ["shift_kv", "window_kv", "rotate_kv_over_shift_kv"])
def test_learning_measures_what_its_payload_needs(llava: "tiny.Backbone", name: str) -> None:
    config = InduceKVConfig(payload=PAYLOADS[name], budget="1MiB", payload_dtype="float16", outer_steps=1, candidates=4)
    model = InducedModel.from_pretrained(llava, config=config)
    model.learn([tiny.example(i) for i in range(4)], task="things")
    assert [entry.payload.tokens for entry in model.memory.entries] == [4] * len(model.memory) and len(model.memory) > 0
    assert model.answer_all([tiny.example(5, answer=False)], max_new_tokens=2)[0].sources
