"""Which tokens are seen, in every form that masks come in."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inducekv.attention_masks import expanded, real_tokens, repeats_of, widened_mask
from inducekv.injection import Injection


def injection(rows, tokens, bias=None):
    """One of which only the rows and the bias matter."""
    blank = torch.ones(rows, tokens, dtype=torch.bool)
    return Injection([], [], blank, bias, torch.zeros(rows, tokens, dtype=torch.long), 1)


def query(batch, queries, dtype=torch.float32):
    return torch.zeros(batch, 1, queries, 4, dtype=dtype)


def read_of(rows, tokens, seed=0):
    return torch.rand(rows, tokens, generator=torch.Generator().manual_seed(seed)) < 0.5


def drawn(*shape, seed=1):
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed)) < 0.5


sizes = st.tuples(st.integers(1, 3), st.integers(1, 3), st.integers(1, 4), st.integers(1, 5), st.integers(0, 3))


@settings(deadline=None)
@given(sizes, st.sampled_from(["none", "bool", "float"]), st.booleans(), st.booleans(), st.integers(1, 2))
def test_memory_is_seen_where_it_is_read_and_the_rest_as_without_memory(size, form, biased, windowed, heads):
    rows, beams, queries, tokens, later = size
    batch, own = rows * beams, queries + later
    read, near = read_of(rows, tokens), drawn(batch, 1, queries, tokens) if windowed else None
    bias = torch.arange(1.0, rows * tokens + 1).view(rows, tokens) if biased else None
    seen = drawn(batch, heads, queries, own + 2, seed=2)
    lowest = torch.finfo(torch.float32).min
    masks = {"none": None, "bool": seen, "float": torch.zeros(seen.shape).masked_fill(~seen, -7.0)}
    got = widened_mask(injection(rows, tokens, bias), read, query(batch, queries), own, masks[form], near)
    heads = 1 if form == "none" else heads
    assert got.shape == (batch, heads, queries, tokens + own)
    memory, rest = got[..., :tokens], got[..., tokens:]
    visible = read.repeat_interleave(beams, 0)[:, None, None].expand(-1, heads, queries, -1)
    visible = visible if near is None else visible & near
    if form == "none":
        causal = torch.ones(queries, own, dtype=torch.bool).tril(0) if queries > 1 else torch.ones(1, own).bool()
        seen_rest = causal.expand(batch, 1, -1, -1)
    else:
        seen_rest = seen[..., :own]
    if form != "float" and not biased:
        assert got.dtype == torch.bool and torch.equal(memory, visible) and torch.equal(rest, seen_rest)
        return
    added = torch.zeros(()) if bias is None else bias.repeat_interleave(beams, 0)[:, None, None]
    assert torch.equal(memory, torch.where(visible, added, lowest).expand_as(memory))
    hidden = -7.0 if form == "float" else lowest
    assert torch.equal(rest, torch.zeros(rest.shape).masked_fill(~seen_rest, hidden))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("given_mask", [False, True])
def test_what_is_hidden_stays_finite_and_in_the_dtype_of_the_model(dtype, given_mask):
    """Eager attention takes its softmax in float32, so no mask goes below what that holds."""
    mask = torch.zeros(1, 1, 2, 2, dtype=dtype) if given_mask else None
    got = widened_mask(
        injection(1, 2, torch.ones(1, 2)), torch.tensor([[True, False]]), query(1, 2, dtype), 2, mask, None
    )
    assert got.dtype == dtype and torch.isfinite(got).all() and got[0, 0, 0, 0] == 1
    lowest = max(torch.finfo(dtype).min, torch.finfo(torch.float32).min)
    assert got[0, 0, 0, 1].item() == lowest and torch.isfinite(got.float()).all()


def test_the_bias_is_differentiable():
    bias = torch.ones(1, 2, requires_grad=True)
    got = widened_mask(injection(1, 2, bias), torch.tensor([[True, False]]), query(2, 1), 1, None, None)
    got[..., :1].sum().backward()
    assert bias.grad.tolist() == [[2.0, 0.0]], "two beams read the one row"


@pytest.mark.parametrize("form", ["rows", "bool", "float", "lowest", "kinds", "other kinds"])
def test_padding_is_found_in_every_form_of_mask(form):
    real = torch.tensor([[False, True, True], [True, True, True], [True, True, False]])
    square = torch.ones(3, 3, dtype=torch.bool).tril() & real[:, None] & real[:, :, None]
    whole = torch.cat([square, torch.zeros(3, 3, 2, dtype=torch.bool)], -1)[:, None]  # of a longer static cache
    added = torch.zeros(whole.shape).masked_fill(~whole, torch.finfo(torch.float32).min)
    masks = {
        "rows": torch.cat([real, torch.ones(3, 2).bool()], -1).long(),
        "bool": whole,
        "float": torch.zeros(whole.shape).masked_fill(~whole, -torch.inf),
        "lowest": added,
        "kinds": {"sliding_attention": ~whole, "full_attention": added},
        "other kinds": {"sliding_attention": added, "chunked_attention": ~whole},
    }
    got = real_tokens(masks[form], torch.zeros(3, 3, dtype=torch.long))
    assert got.dtype == torch.bool and torch.equal(got, real)


def test_without_a_mask_nothing_is_padding_and_one_mask_serves_all_rows():
    tokens = torch.zeros(2, 3, dtype=torch.long)
    assert real_tokens(None, tokens).tolist() == [[True] * 3] * 2
    assert real_tokens({"sliding_attention": None}, tokens).all()
    shared = torch.ones(1, 1, 3, 3, dtype=torch.bool).tril()
    shared[..., 0, 0] = False
    assert real_tokens(shared, tokens).tolist() == [[False, True, True]] * 2


def test_beams_of_a_row_lie_side_by_side_and_other_batches_are_refused():
    assert repeats_of(6, injection(2, 1)) == 3 and repeats_of(2, injection(2, 1)) == 1
    for batch in (1, 3):
        with pytest.raises(ValueError, match=f"for 2 rows, the batch has {batch}"):
            repeats_of(batch, injection(2, 1))
    x = torch.tensor([1, 2])
    assert expanded(x, 1) is x and expanded(x, 2).tolist() == [1, 1, 2, 2]
