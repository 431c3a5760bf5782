"""Finding a payload for a budget: the points, what is held out, what is measured, and what the first task decides."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from commands import refused, run, run_json, write_task
from inducekv import InducedModel, InduceKVConfig, KVMemory
from inducekv.continual.graders import accuracy
from inducekv.memory import BudgetError
from inducekv.memory_config import empty_memory, note_config
from inducekv.tuning import Measured, Point, TooFewExamples, fields_of, frontier_of, source_of, tune
from inducekv.tuning.choice import CERTAINTY, choose, gain_over
from inducekv.tuning.frontier import picture
from inducekv.tuning.measure import Bench
from inducekv.tuning.space import KEY_DTYPES, LADDERS, PAYLOAD_DTYPES, grid, neighbours, spans, start_of
from inducekv.tuning.split import split_of
from test_learner import FAST, colour_task

TASKS = {"first": colour_task(5, seed=1), "second": colour_task(4, seed=2)}
METHODS = (("keep_answer", 0), ("keep_answer", 2), ("mean_pool", 2), ("shift_kv", 2))
LAYERS = (0, 1, 2)
SMALL = {"points": 8, "questions": 6}


def config(**changes: Any) -> InduceKVConfig:
    return InduceKVConfig(**{**FAST, "selector": "herding", "budget": "8KiB", "abstain": False, **changes})


points = st.tuples(
    st.sampled_from(METHODS),
    st.sampled_from(PAYLOAD_DTYPES),
    st.sampled_from(KEY_DTYPES),
    st.sampled_from([(0,), (1,), (2,), (0, 1), (1, 2), (0, 2), LAYERS]),
).map(lambda drawn: Point(*drawn[0], *drawn[1:]))


# -- the points


@given(point=points)
def test_neighbours_are_one_step_away(point: Point) -> None:
    near = neighbours(point, LAYERS, METHODS)
    assert len(set(near)) == len(near) >= 4
    for other in near:
        changed = {name for name, value in other.changes().items() if value != point.changes()[name]}
        assert len(changed) == 1
        assert other.payload_layers and list(other.payload_layers) == sorted(set(other.payload_layers))
        assert other.method in METHODS
        InduceKVConfig(**other.changes())


def test_layers_of_a_deep_model_move_by_an_eighth() -> None:
    layers = tuple(range(32))
    whole = start_of(config(), layers)
    removed = {tuple(sorted(set(layers) - set(p.payload_layers))) for p in neighbours(whole, layers, METHODS)} - {()}
    assert removed == {tuple(range(start, start + 4)) for start in range(0, 32, 4)}


def test_the_grid_starts_at_the_configuration_and_has_every_method_and_format() -> None:
    start = start_of(config(payload="mean_pool", payload_tokens=4, payload_dtype="int8", key_dtype="float16"), LAYERS)
    assert start == Point("mean_pool", 4, "int8", "float16", LAYERS)
    found = grid(start, LAYERS, METHODS)
    assert found[0] == start and len(set(found)) == len(found)
    assert {(p.method, p.payload_dtype) for p in found} >= {(m, d) for m in METHODS for d in PAYLOAD_DTYPES}
    assert {spans(p.payload_layers) for p in found} == {"0-2", "1-2", "0-1", "0,2", "1", "2"}
    assert start_of(config(payload="none", payload_dtype="bfloat16"), LAYERS).method == ("keep_answer", 0)


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 1)), min_size=1, max_size=20))
def test_nothing_beats_the_frontier(found: list[tuple[int, float]]) -> None:
    point = start_of(config(), LAYERS)
    measured = [
        Measured(point, 1, size, float(size), (-float(torch.tensor(worth).log()),), None) for size, worth in found
    ]
    frontier = frontier_of(measured)
    for one in measured:
        assert any(other.entry_nbytes <= one.entry_nbytes and other.worth >= one.worth for other in frontier)
    sizes, worths = [one.entry_nbytes for one in frontier], [one.worth for one in frontier]
    assert sizes == sorted(set(sizes)) and worths == sorted(set(worths))


# -- what is held out


def test_questions_are_held_out_and_balanced() -> None:
    split = split_of(TASKS, 7, 256, seed=3)
    again = split_of(TASKS, 7, 256, seed=3)
    assert [e.identifier for e in split.asked] == [e.identifier for e in again.asked]
    learned, asked = {e.identifier for _, e in split.learned}, [e.identifier for e in split.asked]
    assert not learned & set(asked) and len(set(asked)) == 7
    assert {task for task, _ in split.learned} == {"first", "second"}
    assert {name.split("-")[1] for name in asked[:2]} == {"1", "2"}, "tasks take turns"
    assert {e.answer for e in split_of(TASKS, 6, 256, 0).asked} == {"red", "green", "blue"}
    assert len(split_of(TASKS, 100, 2, 0).learned) == 4


def test_an_answer_given_once_is_learned_not_asked() -> None:
    once = colour_task(1, seed=9, names={"odd": (9, 9, 9)})
    for seed in range(5):
        split = split_of({"t": [*TASKS["first"], *once]}, 100, 256, seed)
        assert "odd" not in {example.answer for example in split.asked}


def test_too_few_examples_are_said_to_be() -> None:
    with pytest.raises(TooFewExamples, match="at least 12 examples with answers, got 9"):
        split_of({"t": TASKS["first"][:9]}, 10, 10, 0)
    pairs = {str(i): TASKS["first"][i : i + 2] for i in range(8)}
    with pytest.raises(TooFewExamples, match="at least 3 examples; each of 8 has fewer"):
        split_of(pairs, 10, 10, 0)


# -- what is measured


@pytest.fixture(scope="module", params=["two_pass", "in_flight"])
def bench(request: Any) -> Bench:
    return Bench(tiny.llava(), split_of(TASKS, 8, 256, 0), config(retrieval=request.param), 12_000, METHODS)


@pytest.mark.parametrize("payload_layers", [(2,), (1, 2), (0, 2)])
def test_a_point_is_measured_as_the_model_would_answer(bench: Bench, payload_layers: tuple[int, ...]) -> None:
    """The short way (everything prepared once) and the façade's way agree, and bytes are those of the memory."""
    point = Point("keep_answer", 2, "int4", "int8", payload_layers)
    in_flight = bench.config.retrieval == "in_flight"
    if in_flight and payload_layers[0] == 0:
        with pytest.raises(ValueError, match=r"from 1 to 2 .*above the key layer; got \[0, 2\]"):
            bench.fill(point)
        return
    found, memory = bench.full(point), bench.fill(point)
    assert found is not None and memory is not None
    assert memory.layers == payload_layers
    assert (found.nbytes, found.entries) == (memory.nbytes, len(memory)) and memory.nbytes <= 12_000
    model = InducedModel(bench.backbone, memory, bench.config.replace(**point.changes()))
    nll = model.score(bench.split.asked).nll
    torch.testing.assert_close(torch.tensor(found.nll, dtype=torch.float64), nll.double().cpu(), rtol=1e-6, atol=1e-6)
    plain = bench.backbone.score(bench.split.asked).nll
    assert (plain - nll).abs().max() > 1e-3, "the memory is read"
    answers = [answer.text for answer in model.answer_all(bench.split.asked, max_new_tokens=8)]
    longest = max(len(e.answer or "") for e in bench.split.asked) + 1
    assert longest <= 8 and found.accuracy == accuracy(answers, [e.answer or "" for e in bench.split.asked])


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(point=points, budget=st.integers(1, 20_000))
def test_a_filled_memory_never_exceeds_the_budget(llava_bench: Bench, point: Point, budget: int) -> None:
    llava_bench.budget = budget
    memory = llava_bench.fill(point)
    if memory is None:
        chosen = config(**point.changes(), budget="1MiB")
        smallest = empty_memory(llava_bench.backbone, chosen)
        note_config(smallest, chosen)
        entries = (
            llava_bench.variants.entry(i, point.method, point.payload_dtype, point.payload_layers, point.key_dtype)
            for i in range(len(llava_bench.variants.learned))
        )
        assert budget < smallest.base_nbytes(TASKS) + min(map(smallest.entry_nbytes, entries))
    else:
        assert 0 < memory.nbytes < memory.file_nbytes <= budget and len(memory)


@pytest.fixture(scope="module")
def llava_bench() -> Bench:
    return Bench(tiny.llava(), split_of(TASKS, 8, 256, 0), config(), 12_000, METHODS)


# -- tuning


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(budget=st.integers(5_000, 20_000))
def test_a_memory_learned_as_tuned_stays_within_the_budget(llava: tiny.Backbone, budget: int) -> None:
    report = tune(llava, TASKS, config(budget=budget), **SMALL)
    assert report.chosen.nbytes <= budget and all(found.nbytes <= budget for found in report.measured)
    model = InducedModel.from_pretrained(llava, config=report.config)
    for task, examples in TASKS.items():
        model.learn(examples, task=task)
        assert model.memory.file_nbytes <= budget


def test_tuning_is_deterministic_and_chooses_among_what_it_measured(llava: tiny.Backbone) -> None:
    first, again = (tune(llava, TASKS, config(), **SMALL) for _ in range(2))
    assert first.config == again.config
    assert [found.to_dict() for found in first.measured] == [found.to_dict() for found in again.measured]
    assert first.chosen in first.measured and (first.chosen, first.notes) == choose(first.measured, first.start)
    assert first.start is not None and first.start.point == start_of(config(), LAYERS)
    assert replace(first.start.point, payload_dtype="float16") in {found.point for found in first.measured}
    assert first.looked_at <= SMALL["points"] and first.questions == 6 and first.learned == 18
    json.dumps(first.to_dict())
    assert InduceKVConfig.from_dict(json.loads(json.dumps(fields_of(first.config)))) == first.config


def test_a_share_of_the_budget_is_left_to_tasks_to_come(llava: tiny.Backbone) -> None:
    report = tune(llava, TASKS, config(budget=20_000), tasks_in_all=5, **SMALL)
    assert report.budget == 8_000 and all(found.nbytes <= 8_000 for found in report.measured)
    with pytest.raises(ValueError, match="has 2 tasks; the memory cannot hold only 1"):
        tune(llava, TASKS, config(), tasks_in_all=1)
    with pytest.raises(BudgetError, match="300 bytes for these tasks holds not one entry"):
        tune(llava, TASKS, config(budget=300), **SMALL)
    with pytest.raises(ValueError, match="points and questions must be at least 1"):
        tune(llava, TASKS, config(), points=0)


def test_the_frontier_is_drawn(llava: tiny.Backbone, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    report = tune(llava, TASKS, config(), **SMALL)
    for name, start in (("a.png", b"\x89PNG"), ("a.svg", b"<?xml")):
        picture(report, tmp_path / name)
        assert (tmp_path / name).read_bytes().startswith(start)
    with pytest.raises(ValueError, match=r"must end in .png or .svg, got 'a.gif'"):
        picture(report, "a.gif")


# -- which point is taken


def measured_as(point: Point, correct: list[bool], size: float = 100.0, nll: float = 0.7) -> Measured:
    return Measured(point, 3, 300, size, (nll,) * len(correct), tuple(correct))


def tied_points(count: int, first: int) -> tuple[Measured, Measured]:
    """A start, and a point that answers `first` questions more of `count`."""
    start = start_of(config(), LAYERS)
    other = measured_as(
        replace(start, payload_dtype="int8"), [i % 2 == 0 or i // 2 < first for i in range(count)], 300.0
    )
    return measured_as(start, [i % 2 == 0 for i in range(count)]), other


def test_one_answer_more_of_ten_is_no_reason_to_leave_the_start() -> None:
    start, other = tied_points(10, 1)
    assert other.worth > start.worth
    chosen, notes = choose([start, other], start)
    assert chosen is start
    assert any("10 questions are too few" in note for note in notes) and any(
        "the start stays" in note for note in notes
    )


def test_what_many_questions_show_is_taken() -> None:
    start, other = tied_points(120, 30)
    assert choose([start, other], start) == (other, [])


def test_of_points_as_good_as_the_best_the_smallest_entries_are_taken() -> None:
    start, best = tied_points(120, 30)
    smaller = replace(best, point=replace(best.point, payload_dtype="int2"), entry_nbytes=50.0)
    smaller = replace(smaller, correct=tuple(right and i != 1 for i, right in enumerate(best.correct or ())))
    assert smaller.worth < best.worth
    assert choose([start, best, smaller], start)[0] is smaller
    assert choose([best, smaller], None)[0] is smaller, "where the start holds nothing, too"


answers = st.integers(1, 60).flatmap(
    lambda count: st.lists(st.lists(st.booleans(), min_size=count, max_size=count), min_size=2, max_size=6)
)


@given(answers)
def test_whatever_is_chosen_is_the_start_or_surely_better(given_answers: list[list[bool]]) -> None:
    start = start_of(config(), LAYERS)
    places = [start, *neighbours(start, LAYERS, METHODS)]
    found = [measured_as(*pair, size=10.0 + i) for i, pair in enumerate(zip(places, given_answers, strict=False))]
    chosen, notes = choose(found, found[0])
    gain, error = gain_over(chosen, found[0])
    assert chosen is found[0] or gain > CERTAINTY * error >= CERTAINTY * 0.5 / len(given_answers[0])
    assert any("too few" in note for note in notes) == (len(given_answers[0]) < 30)
    assert sum(chosen.worths) / len(chosen.worths) == pytest.approx(chosen.worth)


# -- the first task decides


def auto(backbone: Any, **changes: Any) -> InducedModel:
    return InducedModel.from_pretrained(backbone, config=config(payload="auto", budget="16KiB", **changes))


def test_the_first_task_decides_for_all_and_the_memory_knows(
    llava: tiny.Backbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("inducekv.tuning.tuner.METHODS", (("keep_answer", 0), ("mean_pool", 2)))
    monkeypatch.setattr("inducekv.tuning.space.parts", lambda layers: [(0, 2)])
    monkeypatch.setattr("inducekv.tuning.auto.POINTS", 14)
    model = auto(llava)
    model.memory.metadata["model"] = "mine"
    report = model.learn(TASKS["first"], task="first")
    assert report.warnings[0].startswith("payload='auto' found") and "held-out questions" in report.warnings[0]
    found = model.config
    assert found.payload in LADDERS and model.memory.payload_dtype == found.payload_dtype
    assert model.memory.layout.key_dtype == found.key_dtype
    assert found.payload_layers in (None, model.memory.layers)
    assert model.memory.metadata["model"] == "mine"
    model.save_memory(tmp_path)
    loaded = InducedModel.from_pretrained(llava, memory=tmp_path)
    wanted = config(payload="auto", budget="16KiB")
    asked_again = InducedModel.from_pretrained(llava, memory=tmp_path, config=wanted)
    assert asked_again.config == found
    for name in ("payload", "payload_tokens", "payload_layers", "payload_dtype", "key_dtype"):
        assert getattr(loaded.config, name) == getattr(found, name)
    asked_again.learn(TASKS["second"], task="second")
    assert asked_again.config == found and set(asked_again.memory.tasks) == {"first", "second"}
    twin = auto(llava)
    twin.learn(TASKS["first"], task="first")
    assert twin.config == found and [e.id for e in twin.memory.entries] == [e.id for e in model.memory.entries]


def test_too_few_examples_fall_back_to_the_default_and_say_so(llava: tiny.Backbone) -> None:
    model = auto(llava)
    report = model.learn(TASKS["first"][:4], task="few")
    assert "was not tuned (tuning needs at least 12 examples" in report.warnings[0]
    plain = InduceKVConfig()
    assert (model.config.payload, model.config.payload_dtype) == (plain.payload, plain.payload_dtype)
    assert len(model.memory) and model.memory.nbytes <= model.memory.budget


def test_a_first_task_that_cannot_be_learned_leaves_all_as_it_was(llava: tiny.Backbone) -> None:
    model = auto(llava)
    memory = model.memory
    with pytest.raises(ValueError, match="bad\\\\n"):
        model.learn(TASKS["first"][:4], task="bad\n")
    assert model.memory is memory and model.config.payload == "auto" and not len(memory)


def test_auto_means_what_a_memory_holds_already(llava: tiny.Backbone, tmp_path: Path) -> None:
    learned = InducedModel.from_pretrained(
        llava, config=config(payload="mean_pool", payload_tokens=2, payload_layers=(1, 2))
    )
    learned.learn(TASKS["first"][:4], task="first")
    learned.save_memory(tmp_path)
    model = InducedModel.from_pretrained(llava, memory=tmp_path, config=config(payload="auto"))
    assert (model.config.payload, model.config.payload_tokens, model.config.payload_layers) == ("mean_pool", 2, (1, 2))
    memory = KVMemory.from_pretrained(tmp_path)
    memory.metadata["payload"] = '{"payload":"zip"}'
    with pytest.raises(ValueError, match="nothing usable"):
        InducedModel.from_pretrained(llava, memory=memory)


def test_auto_is_for_an_induced_model(llava: tiny.Backbone) -> None:
    from inducekv.compression import compression_named

    with pytest.raises(ValueError, match="decided when an InducedModel learns its first task"):
        compression_named(config(payload="auto"))


# -- layers


@pytest.mark.parametrize(
    ("wanted", "error", "message"),
    [
        ([2, 1], ValueError, "ascending, different and at least one, got \\[2, 1\\]"),
        ([], ValueError, "at least one"),
        ([1, 1], ValueError, "different"),
        ([-1, 0], ValueError, "ascending"),
        ([-1, -2], ValueError, "ascending"),
        ([True], TypeError, "whole number"),
        ("all", TypeError, "a list of layers, or None"),
    ],
)
def test_layers_that_cannot_be_are_refused(wanted: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        InduceKVConfig(payload_layers=wanted)


def test_only_stored_layers_read(llava: tiny.Backbone) -> None:
    model = InducedModel.from_pretrained(llava, config=config(payload_layers=(0, 2)))
    model.learn(TASKS["first"][:4], task="first")
    assert model.memory.layers == (0, 2)
    assert {entry.payload.keys.shape[1] for entry in model.memory.entries} == {2}
    inputs = llava.prepare([TASKS["first"][5]], False).batches[0].inputs
    with model.attached() as attachment:
        llava.model(**inputs)
        assert attachment.injection is not None and tuple(attachment.injection.layers) == (0, 2)
    with pytest.raises(ValueError, match=r"of layers \[0, 2\], the configuration says \[1\]"):
        InducedModel.from_pretrained(llava, memory=model.memory, config=config(payload_layers=(1,)))
    with pytest.raises(ValueError, match=r"from 0 to 2 \(or from -3 to -1\) for this model; got \[3\]"):
        empty_memory(llava, config(payload_layers=(3,)))
    with pytest.raises(ValueError, match=r"got \[-4, -1\]"):
        empty_memory(llava, config(payload_layers=(-4, -1)))
    assert empty_memory(llava, config(payload_layers=(0, -1))).layers == (0, 2)
    for doubled in ((2, -1), (1, -3)):
        with pytest.raises(ValueError, match=r"ascending and different; of this model's 3 layers"):
            empty_memory(llava, config(payload_layers=doubled))


def test_layers_may_count_from_the_end(llava: tiny.Backbone, tmp_path: Path) -> None:
    ends = InducedModel.from_pretrained(llava, config=config(payload_layers=(-2, -1)))
    ends.learn(TASKS["first"][:4], task="first")
    starts = InducedModel.from_pretrained(llava, config=config(payload_layers=(1, 2)))
    starts.learn(TASKS["first"][:4], task="first")
    assert ends.memory.layers == starts.memory.layers == (1, 2)
    for one, other in zip(ends.memory.entries, starts.memory.entries, strict=True):
        assert torch.equal(one.payload.keys, other.payload.keys)
    ends.save_memory(tmp_path)
    again = InducedModel.from_pretrained(llava, memory=tmp_path)
    assert again.config.payload_layers == (-2, -1)
    again.learn(TASKS["second"][:4], task="second")
    assert again.memory.layers == (1, 2)
    with pytest.raises(ValueError, match=r"of layers \[1, 2\], the configuration says \[-1\]"):
        InducedModel.from_pretrained(llava, memory=ends.memory, config=config(payload_layers=(-1,)))


# -- the command


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, a folder of two tasks, and a memory that learned one of them."""
    folder = tmp_path_factory.mktemp("tune")
    backbone = tiny.llava(torch.float32)
    backbone.model.save_pretrained(folder / "model")
    backbone.processor.save_pretrained(folder / "model")
    (folder / "data" / "inner").mkdir(parents=True)
    write_task(folder / "data", "first")
    write_task(folder / "data" / "inner", "train")
    (folder / "config.json").write_text(json.dumps({"selector": "herding", "outer_steps": 2, "inner_steps": 1}))
    options = ("--memory", folder / "memory", "--model", folder / "model", "--config", folder / "config.json")
    run_json("learn", folder / "data" / "first.jsonl", *options, "--budget", "16KiB")
    return folder


FEW = ("--points", 10, "--questions", 6)


def test_tune_reports_and_learn_takes_what_it_wrote(folder: Path, tmp_path: Path) -> None:
    tuned, plot = tmp_path / "tuned.json", tmp_path / "frontier.png"
    options = ("--model", folder / "model", "--budget", "12KiB", *FEW)
    report = run_json("tune", folder / "data", *options, "--out", tuned, "--plot", plot)
    assert (report["tasks"], report["questions"], report["budget"]) == (2, 6, 12 * 1024)
    assert report["config"] == json.loads(tuned.read_text()) and report["config"]["budget"] == "12KiB"
    assert all(found["nbytes"] <= 12 * 1024 for found in report["measured"])
    assert plot.read_bytes().startswith(b"\x89PNG")
    learned = ("--memory", tmp_path / "memory", "--model", folder / "model", "--selector", "herding")
    assert run_json("learn", folder / "data" / "first.jsonl", *learned, "--config", tuned)["nbytes"] <= 12 * 1024
    text = run("tune", folder / "data" / "first.jsonl", *options, "--quiet").stdout
    assert text.startswith("chosen: ") and "for learn --config" in text
    shown = run("tune", folder / "data" / "inner", *options, "--out", tuned).stdout
    assert "bytes: of an entry" in shown and "on the frontier" in shown and f"--config {tuned}" in shown


def test_a_memory_is_tuned_on_its_anchors(folder: Path) -> None:
    source = source_of(folder / "memory")
    assert {task: len(examples) for task, examples in source.tasks.items()} == {"first": 12}
    refused(run("tune", folder / "memory", *FEW), "a model from a folder", "--model")
    report = run_json("tune", folder / "memory", "--model", folder / "model", *FEW)
    assert report["budget"] == 16 * 1024 and report["learned"] == 8
    assert report["start"]["point"]["payload_dtype"] == "int4"


def test_mistakes_of_tune_are_explained(folder: Path, tmp_path: Path) -> None:
    data, model = folder / "data", ("--model", folder / "model")
    refused(run("tune", tmp_path / "nowhere"), "no such file or folder")
    refused(run("tune", tmp_path), "neither a memory nor data", "train.jsonl")
    refused(run("tune", write_task(tmp_path, "few", 5), *model), "at least 12 examples with answers, got 5")
    refused(run("tune", data, *model, "--budget", "much"), "'much'")
    refused(run("tune", data, *model, "--tasks", 1), "cannot hold only 1")
    refused(run("tune", data, *model, "--plot", tmp_path / "a.gif"), ".png or .svg")
    refused(run("tune", data, *model, "--out", tmp_path / "no" / "a.json"), "there is no folder")
    refused(run("tune", data, *model, *FEW, "--budget", "300B"), "holds not one entry")
    small = InducedModel.from_pretrained(folder / "model", config=config(anchors=3))
    small.learn(TASKS["first"], task="first")
    small.save_memory(tmp_path / "small")
    refused(run("tune", tmp_path / "small"), "keeps 3 examples", "give the data")


@pytest.mark.slow
def test_tuning_the_embedded_model_beats_float16() -> None:
    from inducekv import Backbone
    from inducekv.embedded import path
    from inducekv.embedded.tasks import alphabet

    train, test = alphabet(seed=7, classes=8, train=6, test=6)
    backbone = Backbone.from_pretrained(path())
    plain = InduceKVConfig(budget="8KiB", selector="herding", payload_dtype="float16")
    report = tune(backbone, {"letters": train}, plain, points=40)
    expected, found = [example.answer or "" for example in test], {}
    for name, chosen in (("float16", plain), ("tuned", report.config)):
        model = InducedModel.from_pretrained(backbone, config=chosen)
        model.learn(train, task="letters")
        assert model.memory.nbytes <= 8 * 1024
        found[name] = accuracy([answer.text for answer in model.answer_all(test)], expected)
    assert found["tuned"] > found["float16"] + 20
