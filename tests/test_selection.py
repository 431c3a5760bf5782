"""Selectors on problems whose answer is known: planted subsets, exactly solved inner problems."""

from dataclasses import dataclass
from importlib import import_module

import pytest
import torch

from inducekv.config import InduceKVConfig
from inducekv.selection import (
    SELECTORS,
    Coverage,
    Objective,
    PhiFitter,
    SelectionProblem,
    fit_to_chosen,
    indicator,
    priorities,
)
from inducekv.selection.facility_location import every_answer_first, facility_order
from inducekv.selection.herding import herding_order
from inducekv.selection.hypergradient import first_order, implicit
from inducekv.selection.objective import Measured


def unit(rows):
    return torch.nn.functional.normalize(rows, dim=-1)


@dataclass
class SoftNeighbours:
    """Answers by the labels of entries, weighted by alpha: the likelihood a memory gives, without a model."""

    entry_keys: torch.Tensor
    entry_labels: torch.Tensor
    questions: dict
    own: dict

    def size(self, split):
        return len(self.questions[split][0]) if split in self.questions else 0

    def similarities(self, split):
        similarity = self.questions[split][0] @ self.entry_keys.T
        return similarity.masked_fill(self.own[split][:, None] == torch.arange(len(self.entry_keys)), -torch.inf)

    def batches(self, split):
        return 2 if split in self.questions else 0

    def nll(self, split, weights, phi, batch=None):
        pulls = (self.similarities(split) / torch.nn.functional.softplus(phi[0])).exp() * weights.clamp_min(1e-9)
        right = self.entry_labels == self.questions[split][1][:, None]
        keep = torch.sigmoid(phi[1])
        chance = keep * (pulls * right).sum(1) / pulls.sum(1) + (1 - keep) * 0.1
        loss = -(chance + 1e-3).log()
        return loss if batch is None else loss.chunk(2)[batch]

    def nll_alone(self, split, entries, phi):
        right = self.entry_labels[entries] == self.questions[split][1][:, None]
        return torch.where(entries < 0, 2.3, torch.where(right, 0.1, 4.0))


def planted(seed=0, classes=6, noise=30, total=None, costs=None):
    """Two clean entries a class at its two centres, and `noise` entries with wrong labels near them."""
    generator = torch.Generator().manual_seed(seed)
    centres = unit(torch.randn(classes * 2, 16, generator=generator))
    labels = torch.arange(classes).repeat_interleave(2)
    wrong = (labels[torch.arange(noise) % len(labels)] + 1 + torch.arange(noise) % (classes - 1)) % classes
    near = unit(centres[torch.arange(noise) % len(centres)] + 0.1 * torch.randn(noise, 16, generator=generator))
    keys, entry_labels = torch.cat([near, centres]), torch.cat([wrong, labels])

    def ask(count):
        which = torch.randint(len(centres), (count,), generator=generator)
        return unit(centres[which] + 0.1 * torch.randn(count, 16, generator=generator)), labels[which]

    questions = {"calibration": ask(48), "current": ask(48)}
    own = {split: torch.full((48,), -1) for split in questions}
    scorer = SoftNeighbours(keys, entry_labels, questions, own)
    costs = torch.full((len(keys),), 100) if costs is None else costs
    total = 100.0 * len(centres) if total is None else total
    coverage = Coverage.of_keys(keys, costs, total, dimensions=8, epsilon=1e-3, seed=0)
    problem = SelectionProblem(
        Objective(scorer, coverage, beta=1.0, gamma=0.01),
        keys,
        costs,
        total,
        torch.tensor([-2.0, 2.0]),
        ["old" if i % 3 else "new" for i in range(len(keys))],
        [f"entry-{i}" for i in range(len(keys))],
        [str(int(label)) for label in entry_labels],
    )
    return problem, set(range(noise, noise + len(centres)))


@pytest.mark.parametrize("hypergradient", ["first_order", "implicit"])
@pytest.mark.parametrize("seed", range(3))
def test_bilevel_finds_the_planted_entries(hypergradient, seed):
    problem, good = planted(seed)
    config = InduceKVConfig(hypergradient=hypergradient, outer_steps=30, inner_steps=2)
    selection = SELECTORS["bilevel"](problem, config, torch.Generator().manual_seed(seed))
    assert len(good & set(selection.chosen)) >= len(good) - 1
    assert 1 <= len(selection.history) <= 30
    assert selection.history[-1]["best"] <= selection.history[0]["best"]


def test_bilevel_finds_them_from_a_random_start_too(monkeypatch):
    problem, good = planted()
    module = import_module("inducekv.selection.bilevel")
    monkeypatch.setattr(module, "facility_location", SELECTORS["random"])
    config = InduceKVConfig(outer_steps=60, inner_steps=2)
    selection = SELECTORS["bilevel"](problem, config, torch.Generator().manual_seed(0))
    assert len(good & set(selection.chosen)) >= len(good) - 2


def test_greedy_finds_them_and_random_does_not():
    problem, good = planted()
    config = InduceKVConfig()
    chosen = {n: SELECTORS[n](problem, config, torch.Generator().manual_seed(0)).chosen for n in ("greedy", "random")}
    assert len(good & set(chosen["greedy"])) >= len(good) - 1
    assert len(good & set(chosen["random"])) <= len(good) // 2 + 2


def test_bilevel_is_never_worse_than_its_start_by_its_own_measure():
    problem, _ = planted(seed=5, noise=60)
    config = InduceKVConfig(outer_steps=8, inner_steps=1)
    start = SELECTORS["facility_location"](problem, config, torch.Generator())
    end = SELECTORS["bilevel"](problem, config, torch.Generator().manual_seed(0))

    def value(selection, phi):
        weights = torch.zeros(len(problem)).index_fill(0, torch.tensor(selection.chosen), 1.0)
        return float(problem.objective.outer(weights, phi).total)

    assert value(end, end.phi) <= value(start, problem.phi) + 1e-6


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_keeps_the_budget_with_entries_of_different_size(name):
    costs = torch.randint(50, 500, (42,), generator=torch.Generator().manual_seed(1))
    for total in (40.0, 700.0, 2500.0):
        problem, _ = planted(total=total, costs=costs)
        config = InduceKVConfig(outer_steps=4, inner_steps=1)
        selection = SELECTORS[name](problem, config, torch.Generator().manual_seed(0))
        assert int(costs[selection.chosen].sum()) <= total
        assert selection.chosen == sorted(set(selection.chosen))
        assert bool(selection.chosen) == (total > 50)


@pytest.mark.parametrize("name", SELECTORS)
def test_every_selector_repeats_itself_with_the_same_seed_and_keeps_all_that_fits(name):
    problem, _ = planted()
    config = InduceKVConfig(outer_steps=4, inner_steps=1)
    first, again = (SELECTORS[name](problem, config, torch.Generator().manual_seed(7)) for _ in range(2))
    assert first.chosen == again.chosen
    assert torch.equal(first.weights, again.weights) and torch.equal(first.phi, again.phi)
    roomy, _ = planted(total=1e6)
    assert SELECTORS[name](roomy, config, torch.Generator()).chosen == list(range(len(roomy)))


class LeastSquares:
    """A scorer whose inner problem has a closed form: phi*(w) is a regression on targets that depend on w."""

    def __init__(self):
        generator = torch.Generator().manual_seed(0)
        self.inputs, self.outer_inputs = torch.randn(2, 20, 3, generator=generator, dtype=torch.float64)
        self.targets, self.outer_targets = torch.randn(2, 20, 5, generator=generator, dtype=torch.float64)

    def size(self, split):
        return 20 if split in ("calibration", "current") else 0

    def batches(self, split):
        return min(1, self.size(split))

    def similarities(self, split):
        raise NotImplementedError

    def nll_alone(self, split, entries, phi):
        raise NotImplementedError

    def nll(self, split, weights, phi, batch=None):
        if split == "calibration":
            return (self.inputs @ phi - self.targets @ weights**2) ** 2
        return (self.outer_inputs @ phi - (self.outer_targets @ weights).sin()) ** 2

    def best(self, weights):
        return torch.linalg.lstsq(self.inputs, self.targets @ weights**2).solution


def least_squares():
    scorer = LeastSquares()
    weights = torch.tensor([0.2, 0.9, 0.5, 0.4, 0.7], dtype=torch.float64)
    keys = unit(torch.randn(5, 4, generator=torch.Generator().manual_seed(1), dtype=torch.float64))
    objective = Objective(scorer, Coverage(keys, torch.ones(5), 3.0, 0.1), beta=1.0, gamma=0.3)
    return scorer, objective, weights


def finite_differences(function, weights, step=1e-6):
    gradient = torch.zeros_like(weights)
    for i in range(len(weights)):
        shift = torch.zeros_like(weights).index_fill(0, torch.tensor(i), step)
        gradient[i] = (function(weights + shift) - function(weights - shift)) / (2 * step)
    return gradient


def test_implicit_hypergradient_equals_differences_through_the_solved_inner_problem():
    scorer, objective, weights = least_squares()
    gradient, terms = implicit(objective, weights, scorer.best(weights))
    expected = finite_differences(lambda w: objective.outer(w, scorer.best(w)).total, weights)
    assert torch.allclose(gradient, expected, rtol=1e-5, atol=1e-7)
    assert terms.total == objective.outer(weights, scorer.best(weights)).total


def test_first_order_hypergradient_holds_phi_fixed():
    scorer, objective, weights = least_squares()
    phi = scorer.best(weights)
    gradient, _ = first_order(objective, weights, phi)
    assert torch.allclose(gradient, finite_differences(lambda w: objective.outer(w, phi).total, weights), atol=1e-7)
    assert not torch.allclose(gradient, implicit(objective, weights, phi)[0], rtol=1e-2)


def test_fitting_phi_lowers_the_calibration_loss_and_a_failed_fit_keeps_the_old_phi():
    problem, good = planted()
    weights = torch.zeros(len(problem)).index_fill(0, torch.tensor(sorted(good)), 1.0)
    generator = torch.Generator().manual_seed(0)
    start = torch.tensor([1.0, -1.0])
    fitted = fit_to_chosen(problem.objective, weights, start, steps=50, lr=0.1, generator=generator)
    assert problem.objective.inner(weights, fitted) < problem.objective.inner(weights, start) - 0.2
    wild = fit_to_chosen(problem.objective, weights, fitted, steps=1, lr=1e3, generator=generator)
    assert torch.equal(wild, fitted)


def test_fitting_phi_without_questions_leaves_it_alone():
    problem, _ = planted()
    scorer = problem.objective.scorer
    empty = SoftNeighbours(scorer.entry_keys, scorer.entry_labels, {}, {})
    objective = Objective(empty, problem.objective.coverage, 1.0, 0.1)
    fitter = PhiFitter(objective, problem.phi, lr=0.1)
    assert torch.equal(fitter.fit(torch.ones(len(problem)), 5, torch.Generator()), problem.phi)


def test_anchors_keep_what_only_earlier_tasks_need():
    problem, good = planted(seed=2)
    scorer = problem.objective.scorer
    half = {i for i in good if scorer.entry_labels[i] < 3}
    asked = scorer.questions["current"]
    old, new = asked[1] < 3, asked[1] >= 3
    questions = {"current": tuple(x[new] for x in asked), "anchors": tuple(x[old] for x in asked)}
    own = {split: torch.full((len(q[0]),), -1) for split, q in questions.items()}
    scorer = SoftNeighbours(scorer.entry_keys, scorer.entry_labels, questions, own)

    def kept(beta):
        objective = Objective(scorer, problem.objective.coverage, beta, 0.0)
        again = SelectionProblem(
            objective, problem.keys, problem.costs, 600.0, problem.phi, problem.tasks, problem.ids, problem.answers
        )
        config = InduceKVConfig(beta=beta, gamma=0.0, outer_steps=20, inner_steps=1)
        return len(half & set(SELECTORS["bilevel"](again, config, torch.Generator().manual_seed(0)).chosen))

    assert kept(beta=4.0) > kept(beta=0.0)


def test_herding_follows_the_mean_and_tasks_take_turns():
    keys = torch.randn(20, 5, generator=torch.Generator().manual_seed(0))
    order = herding_order(keys)
    assert sorted(order.tolist()) == list(range(20))
    first = (keys[order[:5]].mean(0) - keys.mean(0)).norm()
    shuffled = [keys[torch.randperm(20, generator=torch.Generator().manual_seed(s))[:5]] for s in range(50)]
    assert first < torch.stack([(some.mean(0) - keys.mean(0)).norm() for some in shuffled]).quantile(0.05)
    problem, _ = planted(total=800.0)
    chosen = SELECTORS["herding"](problem, InduceKVConfig(), torch.Generator()).chosen
    assert sorted(problem.tasks[i] for i in chosen) == ["new"] * 4 + ["old"] * 4


@pytest.mark.parametrize("hypergradient", ["first_order", "implicit"])
def test_a_gradient_is_taken_once_for_the_same_questions_until_a_step_is_kept(monkeypatch, hypergradient):
    module = import_module("inducekv.selection.bilevel")
    table, made = dict(module.HYPERGRADIENTS), []

    def counted(*given):
        made.append(given[3:])
        return table[hypergradient](*given)

    problem, _ = planted(1)
    config = InduceKVConfig(hypergradient=hypergradient, outer_steps=30, inner_steps=1)

    def selected():
        made.clear()
        return SELECTORS["bilevel"](problem, config, torch.Generator().manual_seed(0))

    monkeypatch.setattr(module, "HYPERGRADIENTS", {hypergradient: counted})
    once = selected()
    spared = len(once.history) - len(made)
    assert spared > 0

    class Forgetful(dict):
        def __contains__(self, key):
            return False

    monkeypatch.setattr(module, "Gradients", Forgetful)
    anew = selected()
    assert len(made) == len(anew.history) == len(once.history)
    assert anew.chosen == once.chosen and torch.equal(anew.phi, once.phi) and anew.history == once.history


def test_facility_location_leaves_no_entry_far_from_all_that_are_kept():
    generator = torch.Generator().manual_seed(0)
    centres = unit(torch.randn(6, 16, generator=generator))
    sizes = torch.tensor([40, 20, 10, 5, 4, 3])
    keys = centres.repeat_interleave(sizes, 0)
    keys = unit(keys + 0.02 * torch.randn(keys.shape, generator=generator))
    cluster = torch.arange(6).repeat_interleave(sizes)
    order = facility_order(keys)
    assert sorted(order) == list(range(len(keys)))
    assert sorted(cluster[order[:6]].tolist()) == list(range(6)), "one of each cluster, small ones too"
    assert len(set(cluster[herding_order(keys)[:6]].tolist())) < 6, "which the mean of all keys does not ask for"
    assert facility_order(keys[:0]) == []


@pytest.mark.parametrize("seed", range(5))
def test_facility_location_takes_what_adds_most_and_of_equals_the_first(seed):
    generator = torch.Generator().manual_seed(seed)
    centres = torch.randn(8, 12, generator=generator)
    keys = centres[torch.randint(8, (60,), generator=generator)] + 0.3 * torch.randn(60, 12, generator=generator)
    keys = torch.cat([keys, keys[:5]])  # duplicates add the same
    similarity = unit(keys.double()) @ unit(keys.double()).T
    nearest, expected = torch.full((len(keys),), -1.0).double(), []
    for _ in keys:
        gains = (similarity - nearest).clamp_min(0).sum(1).round(decimals=9)
        gains[expected] = -1
        expected.append(gains.tolist().index(max(gains.tolist())))
        nearest = torch.maximum(nearest, similarity[expected[-1]])
    assert facility_order(keys) == expected


def test_every_answer_comes_once_before_any_comes_twice():
    answers = ["a", "a", "b", "a", "c", "b"]
    assert every_answer_first([3, 0, 5, 1, 2, 4], answers) == [3, 5, 4, 0, 2, 1]
    assert every_answer_first([2, 0, 1], ["x", "y", "z"]) == [2, 0, 1]
    assert every_answer_first([], []) == []


def test_facility_location_shares_the_bytes_among_tasks():
    problem, _ = planted(total=800.0)
    chosen = SELECTORS["facility_location"](problem, InduceKVConfig(), torch.Generator()).chosen
    assert sorted(problem.tasks[i] for i in chosen) == ["new"] * 4 + ["old"] * 4
    for task in ("old", "new"):
        assert len({problem.answers[i] for i in chosen if problem.tasks[i] == task}) == 4


def test_reservoir_is_the_same_sample_however_the_stream_is_cut():
    names = [f"entry-{i}" for i in range(300)]
    rank = priorities(names, seed=3)
    whole = set(rank.topk(20).indices.tolist())
    kept = torch.arange(100)[rank[:100].topk(20).indices]
    for start in (100, 200):
        pool = torch.cat([kept, torch.arange(start, start + 100)])
        kept = pool[rank[pool].topk(20).indices]
    assert set(kept.tolist()) == whole
    assert not torch.equal(rank, priorities(names, seed=4))
    assert 0.4 < float(rank.mean()) < 0.6


def test_what_is_measured_by_question_is_the_outer_objective():
    problem, good = planted()
    weights, phi = indicator(sorted(good), len(problem)), problem.phi
    measured = problem.objective.measured(weights, phi)
    assert measured.total == pytest.approx(float(problem.objective.outer(weights, phi).total), rel=1e-5)


def test_a_gain_comes_with_its_standard_error_over_paired_questions():
    before = Measured(
        ((1.0, torch.tensor([3.0, 5.0, 4.0, 4.0]).double()), (2.0, torch.tensor([1.0, 2.0]).double())), 0.5
    )
    after = Measured(
        ((1.0, torch.tensor([2.0, 4.0, 4.0, 4.0]).double()), (2.0, torch.tensor([1.0, 1.0]).double())), 0.4
    )
    gain, error = after.gain_over(before)
    assert gain == pytest.approx(0.5 + 2 * 0.5 + 0.1)
    assert error == pytest.approx((1 / 3 / 4 + 4 * 0.5 / 2) ** 0.5)
    assert before.gain_over(before) == (0.0, 0.0)


def test_steps_within_the_error_of_the_objective_are_taken_back(monkeypatch):
    problem, _ = planted()
    config = InduceKVConfig(outer_steps=6)
    sure = SELECTORS["bilevel"](problem, config, torch.Generator().manual_seed(0))
    assert any(row["kept"] and row["exchanged"] for row in sure.history)
    monkeypatch.setattr(import_module("inducekv.selection.bilevel"), "CERTAINTY", 1e6)
    none = SELECTORS["bilevel"](problem, config, torch.Generator().manual_seed(0))
    assert none.chosen == SELECTORS["facility_location"](problem, config, torch.Generator()).chosen
