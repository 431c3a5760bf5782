"""Learning from many examples: all are considered, in time and memory that grow with their number, not its square."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.functional import normalize

import tiny
from inducekv import InducedModel, InduceKVConfig
from inducekv.examples import Example
from inducekv.selection.facility_location import facility_order
from inducekv.selection.herding import herding_order
from inducekv.selection.shares import in_shares
from inducekv.splits import assign_roles
from test_learner import FAST, colour_task


def clustered(seed: int, count: int, clusters: int = 6, width: int = 16) -> torch.Tensor:
    """Unit-norm keys around a few directions, `[count, width]`."""
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(clusters, width, generator=generator)
    places = torch.arange(count) * clusters // count  # sorted by cluster, as files often are
    return normalize(centres[places] + 0.05 * torch.randn(count, width, generator=generator), dim=1)


@given(st.integers(0, 40), st.integers(2, 12), st.sampled_from([facility_order, herding_order]))
@settings(max_examples=60, deadline=None)
def test_every_entry_has_one_place_however_many_shares_there_are(count, size, order):
    keys = clustered(count, count) if count else torch.zeros(0, 16)
    if count == 0 and order is herding_order:
        return
    assert sorted(in_shares(keys, order, size)) == list(range(count))


@pytest.mark.parametrize("order", [facility_order, herding_order])
def test_few_entries_are_ordered_together_and_many_in_bounded_groups(order):
    keys = clustered(1, 90)
    assert in_shares(keys, order, 90) == [int(i) for i in order(keys)]
    asked = []

    def noted(some):
        asked.append(len(some))
        return order(some)

    found = in_shares(keys, noted, 20)
    assert max(asked) <= 20, "no group is larger than a share"
    assert sum(asked) <= 2 * len(keys), "and a round of the tournament has half as many entries as the one before"
    assert found == in_shares(keys, order, 20)


def test_shares_lose_little_of_what_facility_location_is_for():
    cluster = torch.arange(240) * 8 // 240
    for seed in range(5):
        order = in_shares(clustered(seed, 240, clusters=8), facility_order, 20)
        assert sorted(cluster[order[:8]].tolist()) == list(range(8)), "one of each cluster first, as in one group"


@pytest.mark.parametrize("seed", range(3))
def test_herding_takes_the_entry_that_leaves_the_mean_nearest(seed):
    keys = clustered(seed, 30).double()
    total, left, expected = torch.zeros(16).double(), list(range(30)), []
    for taken in range(1, 31):
        away = {i: float((keys.mean(0) - (total + keys[i]) / taken).norm()) for i in left}
        expected.append(min(left, key=lambda i: round(away[i], 9)))
        left.remove(expected[-1])
        total = total + keys[expected[-1]]
    assert herding_order(keys).tolist() == expected


def test_all_examples_are_candidates_unless_told_otherwise():
    examples = [Example(f"q{i}", str(i % 5), id=str(i)) for i in range(700)]
    roles = assign_roles(examples, InduceKVConfig().candidates, seed=0)
    assert roles.candidates == list(range(700))
    assert roles.calibration and not set(roles.calibration) & set(roles.current)
    assert len(assign_roles(examples, 100, seed=0).candidates) == 100


def test_learning_considers_every_example_and_says_what_it_left_out():
    examples = colour_task(6, seed=1)
    fields = {**FAST, "selector": "facility_location", "budget": "1MiB", "calibration_steps": 0}
    whole = InducedModel.from_pretrained(tiny.llava(), config={**fields, "candidates": None})
    report = whole.learn(examples, task="colours")
    assert report.candidates == report.examples == len(examples) == len(whole.memory)
    assert not any("considered" in note for note in report.notes)
    part = InducedModel.from_pretrained(tiny.llava(), config={**fields, "candidates": 4})
    report = part.learn(examples, task="colours")
    assert len(part.memory) == 4
    assert (
        report.notes[0]
        == f"{len(examples)} examples, 4 considered: raise `candidates`, or leave it out to consider all"
    )


def test_learning_says_what_it_gave_up_of_earlier_tasks():
    model = InducedModel.from_pretrained(tiny.llava(), config={**FAST, "selector": "herding", "budget": "4KiB"})
    first = model.learn(colour_task(5, seed=1), task="first")
    assert not first.dropped and not any("gave up" in note for note in first.notes)
    report = model.learn(colour_task(5, seed=2), task="second")
    assert report.dropped["first"] > 0
    (note,) = [note for note in report.notes if "gave up" in note]
    assert f"{report.dropped['first']} of 'first'" in note
