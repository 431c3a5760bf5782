"""Learning a task: roles, budget, determinism, retention, and what a failure leaves behind."""

import dataclasses
import hashlib

import numpy as np
import pytest
import torch
from PIL import Image

import tiny
from inducekv.abstention import thresholds
from inducekv.config import InduceKVConfig
from inducekv.entry import Entry
from inducekv.examples import Example
from inducekv.learner import entry_id, learn
from inducekv.memory import BudgetError
from inducekv.model import empty_memory
from inducekv.retrieval import Calibration
from inducekv.selection import SELECTORS
from inducekv.selection.likelihood import LikelihoodScorer, to_calibration, to_phi
from inducekv.selection.questions import Question, questions_of
from inducekv.splits import QUESTIONS, assign_roles, balanced_order
from inducekv.stored_payload import Payload
from inducekv.training_state import Anchor, TrainingState

FAST = {"outer_steps": 2, "inner_steps": 1, "candidates": 12, "anchors": 6, "batch_size": 8}
COLOURS = {"red": (220, 40, 30), "green": (20, 160, 60), "blue": (30, 60, 220)}


def colour_task(each=4, seed=0, names=COLOURS):
    generator = np.random.default_rng(seed)
    examples = []
    for name, colour in names.items():
        for i in range(each):
            pixels = np.clip(np.array(colour) + generator.integers(-20, 20, (28, 28, 3)), 0, 255).astype(np.uint8)
            examples.append(Example("which?", name, (Image.fromarray(pixels),), id=f"{name}-{seed}-{i}"))
    return examples


def room_for(entries, backbone):
    """A budget of so many entries of a colour task."""
    config = InduceKVConfig(**FAST)
    memory = empty_memory(backbone, config)
    learn(backbone, memory, colour_task(1)[:1], task="t", config=config, training_state=TrainingState())
    return memory.file_nbytes + (entries - 1) * memory.entry_nbytes(memory.entries[0])


def learned(backbone, *tasks, state=None, **changes):
    config = InduceKVConfig(**{**FAST, **changes})
    memory, state = empty_memory(backbone, config), state or TrainingState()
    reports = [
        learn(backbone, memory, examples, task=name, config=config, training_state=state) for name, examples in tasks
    ]
    return memory, state, reports


# -- roles


def test_balanced_order_gives_every_answer_a_turn_before_any_a_second():
    examples = colour_task(5)
    order = balanced_order(examples, seed=1)
    assert sorted(order) == list(range(15))
    for start in range(0, 15, 3):
        assert {examples[i].answer for i in order[start : start + 3]} == set(COLOURS)
    assert order != balanced_order(examples, seed=2)
    backwards = balanced_order(examples[::-1], seed=1)
    assert [examples[i].id for i in order] == [examples[::-1][i].id for i in backwards]


def test_questions_of_the_two_levels_never_overlap_and_spare_examples_are_asked_first():
    examples = [Example(f"q{i}", str(i % 5), id=str(i)) for i in range(300)]
    roles = assign_roles(examples, candidates=100, seed=0)
    assert len(roles.candidates) == 100
    assert (len(roles.calibration), len(roles.current)) == (QUESTIONS // 4, 3 * QUESTIONS // 4)
    assert not set(roles.calibration) & set(roles.current)
    assert not (set(roles.calibration) | set(roles.current)) & set(roles.candidates)
    few = assign_roles(examples[:10], candidates=100, seed=0)
    assert sorted(few.candidates) == sorted([*few.calibration, *few.current]) == list(range(10))


# -- scoring


def scorer_of(backbone, memory, questions, config):
    ids, answers = ([getattr(entry, name) for entry in memory.entries] for name in ("id", "answer"))
    return LikelihoodScorer(backbone, memory, memory.keys(), ids, answers, {"current": questions}, config)


@pytest.mark.parametrize(("composed", "forbidden"), [(-1.0, 1), (float("inf"), 3)])
def test_entries_that_hold_the_very_answer_are_forbidden_where_it_can_be_composed(
    llava, monkeypatch, composed, forbidden
):
    monkeypatch.setattr("inducekv.selection.likelihood.COMPOSED", composed)
    config = InduceKVConfig(top_k=None, **FAST)
    memory, _, _ = learned(llava, ("colours", colour_task(3)), top_k=None)
    questions = questions_of(llava, colour_task(3), ["colours"] * 9, config)
    closed = scorer_of(llava, memory, questions, config).similarities("current") == -torch.inf
    for question, row in zip(questions, closed, strict=True):
        held = [entry for entry, shut in zip(memory.entries, row.tolist(), strict=True) if shut]
        assert question.entry in {entry.id for entry in held}
        assert len(held) == forbidden and {entry.answer for entry in held} == {question.example.answer}


def test_a_question_never_reads_its_own_entry_and_weight_zero_is_never_read(llava):
    config = InduceKVConfig(top_k=None, weighting="log", **FAST)
    memory, _, _ = learned(llava, ("colours", colour_task(2)), top_k=None)
    examples = colour_task(2)
    questions = questions_of(llava, examples, ["colours"] * 6, config)
    ids = [entry.id for entry in memory.entries]
    scorer = scorer_of(llava, memory, questions, config)
    phi = to_phi(memory.calibration)
    similarity = scorer.similarities("current")
    assert [ids[i] for i in (similarity == -torch.inf).nonzero()[:, 1]] == [example.id for example in examples]
    nothing = scorer.nll("current", torch.zeros(6), phi)
    only_own = torch.stack(
        [scorer.nll("current", (torch.arange(6) == ids.index(e.id)).float(), phi)[i] for i, e in enumerate(examples)]
    )
    assert torch.allclose(nothing, only_own)
    assert torch.allclose(nothing, llava.score(examples).nll.float(), atol=1e-5)
    assert not torch.allclose(nothing, scorer.nll("current", torch.ones(6), phi), atol=1e-3)


def test_scoring_a_batch_at_a_time_and_one_entry_alone_agree_with_scoring_all(llava):
    config = InduceKVConfig(**{**FAST, "batch_size": 4})
    memory, _, _ = learned(llava, ("colours", colour_task(2)))
    questions = questions_of(llava, colour_task(2, seed=9), ["colours"] * 6, config)
    scorer = scorer_of(llava, memory, questions, config)
    phi, ones = to_phi(memory.calibration), torch.ones(6)
    assert (scorer.size("current"), scorer.batches("current"), scorer.size("anchors")) == (6, 2, 0)
    whole = scorer.nll("current", ones, phi)
    assert torch.allclose(whole, torch.cat([scorer.nll("current", ones, phi, batch) for batch in range(2)]))
    alone = scorer.nll_alone("current", torch.tensor([[-1, 3]] * 6), phi)
    assert torch.allclose(alone[:, 0], scorer.nll("current", torch.zeros(6), phi))
    assert torch.allclose(alone[:, 1], scorer.nll("current", (torch.arange(6) == 3).float(), phi), atol=1e-6)


def test_only_questions_that_read_something_else_are_scored_again(llava, monkeypatch):
    config = InduceKVConfig(**{**FAST, "batch_size": 4}, top_k=2)
    memory, _, _ = learned(llava, ("colours", colour_task(4)))
    questions = questions_of(llava, colour_task(3, seed=9), ["colours"] * 9, config)

    def scorer():
        made = scorer_of(llava, memory, questions, config)
        assert made.batches("current") == 3  # prepared, and asked once what can be composed
        return made

    kept, phi = scorer(), to_phi(memory.calibration)
    other, scored = phi + 0.1, []
    whole = type(llava).score

    def counted(self, examples, *args, **options):
        scored.append(examples.count)
        return whole(self, examples, *args, **options)

    drawn = [torch.ones(12) - torch.eye(12)[[i, i + 4]].sum(0) for i in range(4)]  # two entries exchanged each time
    steps = [(drawn[0], phi), (drawn[0], phi), (drawn[1], phi), (drawn[1], other), (drawn[2], other), (drawn[2], phi)]
    counts = []
    for weights, at in [*steps, (drawn[3], phi + 0.2), (drawn[1], phi)]:
        fresh = scorer().nll("current", weights, at)
        monkeypatch.setattr(type(llava), "score", counted)
        assert torch.allclose(kept.nll("current", weights, at), fresh, atol=1e-5)
        monkeypatch.undo()
        counts.append(sum(scored))
        scored.clear()
    assert counts[:2] == [9, 0] and 0 < counts[2] < 9 and counts[3] == 9 and 0 < counts[4] < 9
    weights = drawn[1].clone().requires_grad_()
    (gradient,) = torch.autograd.grad(kept.nll("current", weights, phi).sum(), weights)
    assert bool((gradient != 0).any()), "gradients go through the model, not through what is remembered"


def test_a_batch_cut_to_some_rows_is_those_rows(backbone):
    prepared = backbone.prepare(colour_task(2), True, embed=True, batch_size=6)
    (batch,) = prepared.batches
    whole = backbone.score(prepared).token_nll[batch.rows]
    part = batch.part(torch.tensor([4, 1]))
    assert part is not None
    cut = backbone.score(dataclasses.replace(prepared, batches=(part,), count=2)).token_nll
    assert torch.allclose(cut, whole[[4, 1]], atol=1e-5)
    whole_only = dataclasses.replace(batch, text_inputs={**batch.text_inputs, "visual": torch.ones(6)})
    assert whole_only.part(torch.tensor([4, 1])) is None, "what is not known to come row by row is not cut"


@pytest.mark.parametrize("hypergradient", ["first_order", "implicit"])
def test_gradients_reach_weights_and_phi(llava, hypergradient):
    config = InduceKVConfig(hypergradient=hypergradient, **FAST)
    memory, _, _ = learned(llava, ("colours", colour_task(2)))
    questions = questions_of(llava, colour_task(1, seed=9), ["colours"] * 3, config)
    scorer = scorer_of(llava, memory, questions, config)
    weights, phi = torch.full((6,), 0.5, requires_grad=True), to_phi(memory.calibration).requires_grad_()
    loss = scorer.nll("current", weights, phi).mean()
    by_weights, by_phi = torch.autograd.grad(loss, (weights, phi), create_graph=hypergradient == "implicit")
    assert bool((by_weights != 0).any()) and bool((by_phi != 0).any())
    if hypergradient == "implicit":
        (second,) = torch.autograd.grad(by_phi.sum(), weights)
        assert bool((second != 0).any())


def test_phi_as_a_vector_and_back():
    phi = torch.tensor([0.5, -1.0, 2.0])
    assert torch.equal(to_phi(to_calibration(phi)), phi)


# -- learning


def test_everything_is_kept_when_it_fits(llava):
    memory, state, (report,) = learned(llava, ("colours", colour_task(2)))
    assert len(memory) == report.entries == len(report.chosen) == 6
    assert report.nbytes == memory.nbytes <= memory.budget
    assert report.dropped == {} and report.warnings == []
    assert len(state.anchors) == report.anchors == 6
    assert report.anchors_nbytes == state.nbytes > 0
    assert set(report.before) == set(report.after) == {"current", "anchors", "coverage", "total"}
    assert set(memory.thresholds) == {"colours"}
    assert report.to_dict()["task"] == "colours"


@pytest.mark.parametrize("selector", SELECTORS)
def test_the_budget_holds_over_a_stream_for_every_selector(llava, selector):
    tasks = [(f"task {i}", colour_task(3, seed=i)) for i in range(3)]
    budget = room_for(8, llava)
    memory, state, reports = learned(llava, *tasks, selector=selector, budget=budget)
    assert 5 <= len(memory) <= 8
    assert memory.nbytes < memory.file_nbytes <= memory.budget == budget
    assert sum(reports[-1].dropped.values()) > 0
    assert len(state.anchors) <= FAST["anchors"]


def test_the_model_is_not_changed(llava):
    def digest():
        parts = [p.detach().numpy().tobytes() for p in llava.model.state_dict().values()]
        grads = [p.grad for p in llava.model.parameters()]
        return hashlib.sha256(b"".join(parts)).hexdigest(), all(g is None for g in grads)

    before = digest()
    learned(llava, ("colours", colour_task(3)), budget=room_for(5, llava))
    assert digest() == before and before[1]


def test_the_same_seed_gives_the_same_files(llava, tmp_path):
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        memory, state, _ = learned(llava, ("x", colour_task(4)), ("y", colour_task(4, 5)), seed=seed, budget="8KiB")
        memory.save_pretrained(tmp_path / name)
        state.save(tmp_path / name)
    files = {n: {f.name: f.read_bytes() for f in (tmp_path / n).iterdir() if not f.name.startswith(".")} for n in "abc"}
    assert files["a"] == files["b"]
    assert files["a"] != files["c"]


def test_selection_is_by_likelihood_on_a_real_backbone_too(llava):
    """By the measure it minimises, bilevel is better than random choices from the same candidates."""
    budget = room_for(6, llava)

    def total(selector, **changes):
        return learned(llava, ("x", colour_task(4)), selector=selector, budget=budget, **changes)[2][0].after["total"]

    by_chance = [total("random", gamma=0.0, seed=seed) for seed in range(4)]
    assert total("bilevel", gamma=0.0, outer_steps=20) < sum(by_chance) / 4


def test_learning_a_task_again_extends_it_and_replaces_entries_of_the_same_examples(llava):
    first, again = colour_task(2), [*colour_task(2)[:3], *colour_task(1, seed=8)]
    memory, _, reports = learned(llava, ("colours", first), ("colours", again))
    assert len(memory) == 9 and memory.tasks == ("colours",)
    assert reports[1].dropped == {}


def test_the_same_example_may_be_learned_in_two_tasks(llava):
    memory, _, _ = learned(llava, ("one", colour_task(1)), ("two", colour_task(1)))
    assert len(memory) == 6 and memory.tasks == ("one", "two")
    assert entry_id("a", "two", {"a"}) == entry_id("a", "two", {"a"}) != "a"
    assert entry_id("line\nbreak", "t", set()) != "line\nbreak"
    assert len(entry_id("x" * 500, "t", set())) == 16


def test_examples_with_one_id_count_once(llava):
    _, _, (report,) = learned(llava, ("colours", [*colour_task(1), *colour_task(1)]))
    assert report.examples == 3
    assert "left out" in report.warnings[0]


@pytest.mark.parametrize("images", [0, 2])
def test_examples_without_pictures_or_with_several_are_learned(llava, images):
    memory, _, _ = learned(llava, ("mixed", [tiny.example(i, images=images) for i in range(4)]))
    assert len(memory) == 4


def test_free_text_answers_and_a_single_example_are_learned(qwen):
    memory, _, (report,) = learned(qwen, ("one", [Example("say?", "a long answer. Of two sentences.", (), "only")]))
    assert len(memory) == 1
    assert report.after["current"] == report.before["current"]  # nothing but its own entry to read


# -- failures


@pytest.mark.parametrize(
    ("examples", "task", "error", "says"),
    [
        ([], "t", ValueError, "no examples"),
        ([Example("q", None, (), "id-7")], "t", ValueError, "'id-7' has no answer"),
        ([Example("q", "  ", (), "id-8")], "t", ValueError, "'id-8' has no answer"),
        (["text"], "t", TypeError, "Example"),
        ([Example("q", "a")], "", ValueError, "task name"),
    ],
)
def test_what_cannot_be_learned_is_refused(llava, examples, task, error, says):
    config = InduceKVConfig(**FAST)
    with pytest.raises(error, match=says):
        learn(llava, empty_memory(llava, config), examples, task=task, config=config, training_state=TrainingState())


def test_a_budget_too_small_for_one_entry_names_both_sizes(llava):
    with pytest.raises(BudgetError, match=r"one entry of 't' takes .* budget of .* leaves \d+ B for entries"):
        learned(llava, ("t", colour_task(1)), budget=room_for(1, llava) - 80)
    with pytest.raises(BudgetError, match="the budget is 400"):
        learned(llava, ("t", colour_task(1)), budget=400)


def test_a_failure_leaves_memory_and_training_state_as_they_were(llava, monkeypatch):
    memory, state, _ = learned(llava, ("x", colour_task(2)))
    before, anchors, calibration = memory.entries, list(state.anchors), memory.calibration

    def fail(*_, **__):
        raise RuntimeError("the power went")

    monkeypatch.setitem(SELECTORS, "bilevel", fail)
    with pytest.raises(RuntimeError, match="power"):
        learn(llava, memory, colour_task(2, 4), task="y", config=InduceKVConfig(**FAST), training_state=state)
    assert memory.entries == before and state.anchors == anchors and memory.calibration is calibration


# -- anchors


def test_anchors_are_shared_between_tasks_and_keep_their_bytes(tmp_path):
    file = tmp_path / "picture.png"
    colour_task(1)[0].images[0].save(file)
    state = TrainingState().updated([Example("q?", "a", (file,), "from-file")], "first", 8, 0)
    assert state.anchors[0].pictures == (file.read_bytes(),)
    example = state.anchors[0].example()
    assert state.anchors[0].example() is example, "so that what was rendered of it is found again"
    assert example.images == (file.read_bytes(),), "which takes no more room once its picture was decoded"
    assert TrainingState().updated([example], "again", 8, 0).anchors[0].pictures == example.images
    broken = dataclasses.replace(state.anchors[0], pictures=(b"no picture",))
    with pytest.raises(ValueError, match="image of anchor from-file: not a readable picture"):
        broken.example()
    with pytest.raises(ValueError, match="example 'x': image given as bytes: not a readable picture"):
        TrainingState().updated([Example("q?", "a", b"no picture", "x")], "first", 8, 0)
    for number in range(3):
        state = state.updated(colour_task(4, seed=number), f"task {number}", 8, 0)
    counts = [sum(anchor.task == name for anchor in state.anchors) for name in state.tasks]
    assert counts == [1, 2, 2, 2]
    assert state.updated(colour_task(1), "more", 0, 0).anchors == []


def test_anchors_of_a_task_shrink_to_a_part_of_what_they_were():
    wide = TrainingState().updated(colour_task(6), "x", 12, 0)
    narrow = wide.updated(colour_task(6, seed=1), "y", 12, 0)
    kept = {anchor.id for anchor in narrow.anchors if anchor.task == "x"}
    assert len(kept) == 6 and kept < {anchor.id for anchor in wide.anchors}
    assert len({anchor.answer for anchor in narrow.anchors}) == 3


def test_training_state_survives_the_disk_and_forgets(tmp_path):
    state = TrainingState().updated(colour_task(2), "x", 4, 0).updated(colour_task(2, 1), "y", 8, 0)
    assert not TrainingState.exists(tmp_path) and TrainingState.load(tmp_path).anchors == []
    state.save(tmp_path)
    again = TrainingState.load(tmp_path)
    assert TrainingState.exists(tmp_path) and again == state
    picture = again.anchors[0].example().load_images()[0]
    assert np.array_equal(np.asarray(picture), np.asarray(colour_task_image(again.anchors[0])))
    gone = [anchor for anchor in again.anchors if anchor.task == "x"]
    assert again.forget("x") == len(gone) > 0
    again.save(tmp_path)
    data = (tmp_path / "training_state.safetensors").read_bytes()
    assert all(anchor.pictures[0] not in data and anchor.id.encode() not in data for anchor in gone)
    assert len(list(tmp_path.iterdir())) == 1


def colour_task_image(anchor):
    return next(e for e in [*colour_task(2), *colour_task(2, 1)] if e.id == anchor.id).images[0]


@pytest.mark.parametrize("damage", ["truncate", "edit", "lengths", "empty"])
def test_a_damaged_training_state_is_refused(tmp_path, damage):
    path = TrainingState([Anchor("t", "i", "q", "a", (b"12345",))]).save(tmp_path)
    data = path.read_bytes()
    damaged = {
        "truncate": data[:-3],
        "edit": data.replace(b'"task"', b'"tusk"'),
        "lengths": data.replace(b"[5]", b"[9]"),
        "empty": b"",
    }[damage]
    assert damaged != data
    path.write_bytes(damaged)
    with pytest.raises(ValueError, match="damaged"):
        TrainingState.load(tmp_path)


# -- abstention


def test_thresholds_lie_below_nearly_all_questions_of_the_task_and_above_foreign_ones():
    generator = torch.Generator().manual_seed(0)
    centre, other = torch.nn.functional.normalize(torch.randn(2, 32, generator=generator), dim=-1)

    def near(point, count):
        return torch.nn.functional.normalize(point + 0.05 * torch.randn(count, 32, generator=generator), dim=-1)

    keys = near(centre, 10)
    zeros = torch.zeros(1, 1, 1, 2)
    stored = Payload(zeros, zeros, None, None, "float32", 2)
    entries = [Entry(f"e{i}", "t", keys[i].half(), stored, 1, 1) for i in range(10)]
    own = [Question(Example("q", "a", (), f"e{i}"), keys[i], "t") for i in range(10)]
    asked = near(centre, 200)
    held_out = [Question(Example("q", "a", (), f"q{i}"), asked[i], "t") for i in range(20)]
    limit = thresholds(entries, keys, own + held_out, space="raw")["t"]
    best = (asked @ keys.T).amax(1)
    assert float((best < limit).float().mean()) < 0.02
    assert float((near(other, 200) @ keys.T).amax()) < limit < 0.999
    assert thresholds(entries[:1], keys[:1], own[:1], space="raw") == {}


def test_a_few_anchors_never_make_an_earlier_task_refuse_more(llava):
    config = InduceKVConfig(**FAST | {"anchors": 3}, budget="1MiB")
    state, memory, limits = TrainingState(), empty_memory(llava, config), {}
    for number in range(3):
        examples = colour_task(4, seed=number)
        learn(llava, memory, examples, task=f"task {number}", config=config, training_state=state)
        assert all(memory.thresholds[name] <= limit for name, limit in limits.items())
        limits = dict(memory.thresholds)
    assert len(limits) == 3


def test_fast_learning_reads_examples_once_and_asks_nothing(llava, monkeypatch):
    config = InduceKVConfig.fast(budget="1MiB")
    state, memory = TrainingState(), empty_memory(llava, config)
    seen = []
    decode = type(llava.text_model).forward

    def counted(self, *args, **options):
        seen.append(1)
        return decode(self, *args, **options)

    monkeypatch.setattr(type(llava.text_model), "forward", counted)
    first = learn(llava, memory, colour_task(2), task="colours", config=config, training_state=state)
    assert len(seen) == 1, "one batch, one pass"
    limits = dict(memory.thresholds)
    assert set(limits) == {"colours"} and first.before == first.after == {}
    assert len(state.anchors) == 6, "kept for when a task is learned in another way"
    start = Calibration.initial(llava.layers, config.temperature)
    assert torch.equal(memory.calibration.phi_tau, start.phi_tau)
    more = colour_task(2, seed=5, names={"black": (0, 0, 0), "white": (255, 255, 255)})
    learn(llava, memory, more, task="shades", config=config, training_state=state)
    assert len(seen) == 2
    assert memory.thresholds["colours"] == limits["colours"] and "shades" in memory.thresholds


@pytest.mark.parametrize("selector", ["bilevel", "greedy"])
def test_where_everything_fits_and_phi_stays_nothing_is_asked(llava, selector):
    changes = {"selector": selector, "calibration_steps": 0}
    tasks = [(f"task {i}", colour_task(2, seed=i)) for i in range(2)]
    memory, _, (fits, chooses) = learned(llava, *tasks, **changes, budget=room_for(8, llava))
    assert fits.entries == 6 and fits.before == fits.after == {}
    assert chooses.before and chooses.after and sum(chooses.dropped.values()) + len(chooses.chosen) < 12
    assert len(memory) <= 8 and set(memory.thresholds) == {"task 0", "task 1"}
    _, _, (calibrated, _) = learned(llava, *tasks, **changes | {"calibration_steps": 1}, budget=room_for(8, llava))
    assert calibrated.before and calibrated.after
