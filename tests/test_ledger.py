"""Byte budgets: what a solver chooses stays within them; where nothing fits it says what would have been enough."""

import re

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

import tiny
from inducekv.continual.ledger import HALF, Dimensions, adapter_nbytes, count_that_fits, solve_size
from inducekv.continual.methods import METHODS
from inducekv.continual.methods.adapter import AdapterMethod
from inducekv.continual.methods.moelora import MoELora
from inducekv.continual.methods.olora import OLora
from inducekv.continual.methods.osft import Osft
from inducekv.continual.methods.prefix import PrefixMethod
from inducekv.continual.methods.trained import TrainedMethod

TRAINED = [kind.method for kind in METHODS.values() if issubclass(kind.method, TrainedMethod)]
NAMES = [f"layers.{layer}.{kind}" for layer in range(3) for kind in ("q_proj", "v_proj", "up_proj")]

dimensions = st.builds(
    Dimensions,
    layers=st.integers(1, 4),
    hidden_size=st.integers(1, 64),
    kv_heads=st.integers(1, 4),
    head_dim=st.integers(1, 32),
    linears=st.dictionaries(st.sampled_from(NAMES), st.tuples(st.integers(1, 64), st.integers(1, 64)), min_size=1),
)


def nbytes(method, sizes: Dimensions, size) -> int:
    """Deployed bytes of a size, written out once more."""
    if issubclass(method, PrefixMethod):
        return 2 * size * method.per_token(sizes)
    numbers = 0
    for name in size.modules:
        wide, high = sizes.linears[name]
        numbers += size.rank * (wide + high + (method is Osft)) + (4 * wide if method is MoELora else 0)
    return 2 * numbers


@pytest.mark.parametrize("method", TRAINED)
@given(sizes=dimensions, budget=st.integers(0, 50_000), tasks=st.integers(1, 12))
def test_a_solved_size_never_exceeds_the_budget(method, sizes, budget, tasks):
    try:
        size = method.solve(sizes, budget, tasks)
    except ValueError as error:
        enough = re.search(r"the smallest that works is (\d+)", str(error))
        if enough is None:
            assert "wide enough" in str(error), error
            return
        assert int(enough[1]) > budget
        enough_for = method.solve(sizes, int(enough[1]), tasks)
        assert nbytes(method, sizes, enough_for) <= int(enough[1])
        return
    assert 0 < nbytes(method, sizes, size) <= budget
    if issubclass(method, AdapterMethod):
        assert size.nbytes == nbytes(method, sizes, size)
        if method is not Osft:
            formula = adapter_nbytes(size, sizes.linears, per_rank=method.per_rank, fixed=method.fixed)
            assert formula == size.nbytes
    if method is OLora:
        assert size.rank % tasks == 0
    if method is MoELora:
        assert size.rank % MoELora.experts == 0


@given(sizes=dimensions, budget=st.integers(0, 50_000))
def test_a_lora_uses_its_bytes(sizes, budget):
    linears = sizes.linears
    cheapest = min(HALF * sum(shape) for shape in linears.values())
    assume(budget >= cheapest)
    size = solve_size(linears, budget)
    if len(size.modules) == len(linears) and size.rank < max(map(min, linears.values())):
        assert size.nbytes + HALF * sum(map(sum, linears.values())) > budget, "a higher rank would have fitted"


def test_dimensions_of_a_model():
    backbone = tiny.idefics3(torch.float32)
    sizes = Dimensions.of(backbone)
    assert (sizes.layers, sizes.hidden_size, sizes.kv_heads, sizes.head_dim) == (3, 64, 2, 24)
    assert sizes.kv_width == 2 * 3 * 2 * 24
    assert len(sizes.linears) == 3 * 7
    assert sizes.linears["model.text_model.layers.1.self_attn.k_proj"] == (64, 48)
    assert not any("vision" in name or "lm_head" in name for name in sizes.linears)


def test_how_many_fit():
    assert count_that_fits("thing", 100, 250) == 2
    with pytest.raises(ValueError, match="too small for 3 thing of 100 bytes; the smallest that works is 300"):
        count_that_fits("thing", 100, 250, 3)
