"""What learning minimises: every earlier task counts like the new one, and phi is held where it began."""

from dataclasses import dataclass, field

import pytest
import torch

import tiny
from inducekv.config import InduceKVConfig
from inducekv.learner import learn
from inducekv.model import empty_memory
from inducekv.retrieval import Calibration
from inducekv.selection import SELECTORS, Coverage, Objective
from inducekv.selection.likelihood import to_phi
from inducekv.selection.objective import Prior
from inducekv.training_state import TrainingState

LOSSES = {"calibration": 1.0, "calibration_anchors": 10.0, "current": 100.0, "anchors": 1000.0}


@dataclass
class Told:
    """Of each split the loss that it is told, times the sum of the weights and of phi's square."""

    losses: dict = field(default_factory=lambda: dict(LOSSES))

    def size(self, split):
        return 2 if split in self.losses else 0

    def batches(self, split):
        return self.size(split)

    def similarities(self, split):
        return torch.zeros(self.size(split), 3)

    def nll(self, split, weights, phi, batch=None):
        count = 2 if batch is None else 1
        return self.losses[split] * (1 + phi.square().sum()) * weights.sum() * torch.ones(count)

    def nll_alone(self, split, entries, phi):
        return torch.zeros(entries.shape)


def objective(beta=3.0, gamma=0.5, prior=None, without=()):
    coverage = Coverage(torch.eye(3), torch.ones(3), 3, 0.1)
    return Objective(Told({k: v for k, v in LOSSES.items() if k not in without}), coverage, beta, gamma, prior)


def test_the_terms_of_j_are_weighted_by_beta_and_gamma():
    weights, phi = torch.ones(3), torch.tensor([1.0, 2.0])
    for without, anchors in (((), 1000.0), (("anchors",), 0.0)):
        terms = objective(without=without).outer(weights, phi)
        assert (float(terms.current), float(terms.anchors)) == (100.0 * 18, anchors * 18)
        expected = 1800 + 3 * anchors * 18 + 0.5 * float(terms.coverage)
        assert float(terms.total) == pytest.approx(expected)
        assert objective(without=without).measured(weights, phi).total == pytest.approx(expected)


def test_the_inner_loss_has_an_anchors_part_and_what_holds_phi():
    weights, phi = torch.ones(3), torch.tensor([1.0, 2.0])
    alone, both = 18.0, 18.0 + 3 * 180
    assert float(objective().inner(weights, phi)) == pytest.approx(both), "the paper's"
    assert float(objective(without=("calibration_anchors",)).inner(weights, phi)) == pytest.approx(alone)
    held = objective(prior=Prior(torch.tensor([0.0, 4.0]), 0.7))
    assert float(held.inner(weights, phi)) == pytest.approx(both / 4 + 0.7 * (1 + 4))


@pytest.fixture(scope="module")
def lessons():
    return [(f"task {n}", [tiny.example(5 * n + i) for i in range(4)]) for n in range(4)]


def taught(backbone, lessons, **changes):
    quick = {"outer_steps": 1, "inner_steps": 1, "anchors": 8, "batch_size": 8, "top_k": 2, **changes}
    config = InduceKVConfig(**{"selector": "facility_location", "calibration_steps": 2, "budget": "1MiB", **quick})
    memory, state = empty_memory(backbone, config), TrainingState()
    reports = [learn(backbone, memory, each, task=name, config=config, training_state=state) for name, each in lessons]
    return memory, reports, config


def test_anchors_count_once_for_every_earlier_task(llava, lessons):
    """The task that is learned again is no earlier one."""
    again = ("task 1", [tiny.example(50 + i) for i in range(4)])
    _, reports, _ = taught(llava, [*lessons, again], beta=0.5, gamma=0.25)
    for report, earlier in zip(reports, (1, 1, 2, 3, 3), strict=True):
        for terms in (report.before, report.after):
            expected = terms["current"] + 0.5 * earlier * terms["anchors"] + 0.25 * terms["coverage"]
            assert terms["total"] == pytest.approx(expected, rel=1e-5)
    assert all(report.after["anchors"] > 0 for report in reports[1:])


@pytest.fixture
def seen(monkeypatch):
    """The problem of each lesson, as its selector was given it."""
    problems, select = [], SELECTORS["facility_location"]

    def noted(problem, *arguments):
        problems.append(problem)
        return select(problem, *arguments)

    monkeypatch.setitem(SELECTORS, "facility_location", noted)
    return problems


@pytest.mark.parametrize("strength", [0.0, 0.3, 2.0])
def test_phi_is_pulled_to_where_it_starts_as_strongly_as_configured(llava, lessons, seen, strength):
    """In every lesson to the same place, not to where the one before left it."""
    _, _, config = taught(llava, lessons[:2], calibration_prior=strength)
    start = to_phi(Calibration.initial(llava.layers, config.temperature))
    far = torch.ones_like(start)
    for problem, count in zip(seen, (4, 8), strict=True):
        weights = torch.ones(count)
        if not strength:
            assert problem.objective.prior is None
            continue
        pulled, free = problem.objective, Objective(problem.objective.scorer, problem.objective.coverage, 1.0, 0.0)
        for phi in (start, start + far):
            loss = free.inner(weights, phi) / 2 + strength * (phi - start).square().sum()
            assert torch.allclose(pulled.inner(weights, phi), loss, rtol=1e-5)


def test_the_stronger_the_pull_the_nearer_phi_stays(llava, lessons):
    def moved(strength):
        memory, _, config = taught(llava, lessons[:1], calibration_prior=strength, calibration_steps=12)
        start = to_phi(Calibration.initial(llava.layers, config.temperature))
        return float((to_phi(memory.calibration) - start).norm())

    free, default, strong = (moved(strength) for strength in (0.0, InduceKVConfig().calibration_prior, 100.0))
    assert free > default > strong
