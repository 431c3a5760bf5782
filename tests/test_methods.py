"""The compared methods, all in one table, on a tiny model."""

import json
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

import tiny
from inducekv.config import InduceKVConfig
from inducekv.continual.methods import METHODS, make_method
from inducekv.continual.methods.sequential_lora import SequentialLora
from inducekv.continual.methods.storage import DEPLOYED, TRAINING
from inducekv.continual.methods.training import Recipe, TrainingBatch, TrainingDiverged, fit
from inducekv.continual.stream import Experience
from inducekv.examples import Example
from inducekv.progress import SILENT
from inducekv.rendering import Prepared

BUDGET = 40_000
CONFIG = InduceKVConfig(outer_steps=2, inner_steps=1, candidates=8, anchors=4)
QUICK = Recipe(epochs=3, learning_rate=1e-2, batch_size=4)

ROWS: dict[str, dict] = {
    "zero_shot": {},
    "nearest_neighbour": {},
    "retrieved_prompt": {},
    "masked_prompt": {},
    "individual_lora": {"recipe": QUICK},
    "joint_lora": {"recipe": QUICK},
    "sequential_lora": {"recipe": QUICK},
    "replay_lora": {"recipe": QUICK},
    "ewc_lora": {"recipe": QUICK},
    "lwf_lora": {"recipe": QUICK},
    "olora": {"recipe": QUICK},
    "moelora": {"recipe": QUICK},
    "osft": {"recipe": QUICK},
    "prompt_tuning": {"recipe": QUICK},
    "l2p": {"recipe": QUICK},
    "cartridge": {"recipe": QUICK},
    "inducekv": {},
    "inducekv/no_coupling": {},
    "inducekv/no_retention": {},
    "inducekv/no_coverage": {},
    "inducekv/no_retrieval_weighting": {},
    "inducekv/all_layers": {},
    "inducekv/fast": {},
    "inducekv/greedy": {},
    "inducekv/facility_location": {},
    "inducekv/herding": {},
    "inducekv/reservoir": {},
    "inducekv/random": {},
}
"""Options that each method is tested with. A new method is one more line."""

OVER_BUDGET = {"individual_lora", "retrieved_prompt", "masked_prompt"}
"""References that keep more than the budget, and say so."""


def named(seed: int, word: str) -> Example:
    return Example("what?", word, (tiny.picture(seed),), id=f"{word}-{seed}")


def task(name: str, *words: str) -> Experience:
    train = tuple(named(seed, word) for seed, word in enumerate(words * 3))
    return Experience(name, train, tuple(named(90 + seed, word) for seed, word in enumerate(words)))


TASKS = (task("first", "zorb", "ka"), task("second", "blick", "ot"))


@pytest.fixture(scope="module")
def small():
    return tiny.idefics3(torch.float32)


def make(name, backbone, seed=0):
    """A method with the partner it needs, which is the first of the two returned."""
    options = {"budget": BUDGET, "seed": seed, "stream_length": len(TASKS), "config": CONFIG, "max_new_tokens": 4}
    partner = None
    if METHODS[name].shares:
        partner = make_method(METHODS[name].shares, backbone, **options)
    return partner, make_method(name, backbone, partner=partner, **options, **ROWS[name])


def condition(backbone):
    """Everything about a backbone that a method might change."""
    model = backbone.model
    return {
        "modules": [(name, type(module)) for name, module in model.named_modules()],
        "attributes": {name: sorted(vars(module)) for name, module in model.named_modules()},
        "hooks": [sum(len(v) for k, v in vars(m).items() if k.endswith("hooks")) for m in model.modules()],
        "flags": {name: p.requires_grad for name, p in model.named_parameters()},
        "grads": {name: p.grad is None for name, p in model.named_parameters()},
        "config": model.config.to_json_string(use_diff=False),
        "training": [module.training for module in model.modules()],
        "attention": backbone.text_model.config._attn_implementation,
    }


def weights(backbone):
    return {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}


def learn(methods, experience):
    for method in methods:
        if method is not None:
            method.learn(experience)


def answers(method):
    return [method.answer(list(t.test), task=t.task) for t in TASKS]


def stored_nbytes(directory: Path, *files: str) -> int:
    """Bytes of safetensors files without their headers."""
    total = 0
    for path in (directory / file for file in files):
        if path.is_file():
            header = int.from_bytes(path.read_bytes()[:8], "little")
            total += path.stat().st_size - 8 - header
    return total


def stored_example_nbytes(directory: Path) -> int:
    """Bytes of the pictures and texts in a file of examples, without the framing of its JSON."""
    (path,) = directory.glob("training_state*.safetensors")
    with safe_open(path, "np") as file:
        rows = json.loads(file.get_tensor("anchors").tobytes())
        texts = sum(len(row[k].encode()) for row in rows for k in ("task", "id", "question", "answer"))
        return texts + file.get_tensor("pictures").nbytes


def stored_memory_nbytes(directory: Path, *, without: tuple[str, ...] = ()) -> int:
    """Bytes of a memory's tensors, and of the table of tasks in its JSON."""
    (path,) = directory.glob("memory-*.safetensors")
    index = json.loads((directory / "memory.json").read_bytes())
    table = sum(len(json.dumps(name, ensure_ascii=False).encode()) + 40 for name, _ in index["tasks"])
    with safe_open(path, "pt") as file:
        return table + sum(file.get_tensor(k).nbytes for k in file.keys() if not k.startswith(without or "-"))  # noqa: SIM118


def stored(method, directory: Path) -> tuple[int, int]:
    """Deployed and training bytes of what `save` wrote."""
    if method.name.startswith("inducekv"):
        return stored_memory_nbytes(directory), stored_example_nbytes(directory)
    if method.name == "nearest_neighbour":
        return stored_memory_nbytes(directory.parent / "partner", without=("payload", "key_sc", "value_sc", "cali")), 0
    if method.name in ("retrieved_prompt", "masked_prompt"):
        other = ("payload", "key_sc", "value_sc", "cali", "text", "numbers")
        return stored_memory_nbytes(directory.parent / "partner", without=other) + stored_example_nbytes(directory), 0
    examples = stored_example_nbytes(directory) if (directory / "training_state.safetensors").exists() else 0
    return stored_nbytes(directory, DEPLOYED), examples + stored_nbytes(directory, TRAINING)


def test_every_method_has_its_line_here():
    assert set(ROWS) == set(METHODS)


@pytest.mark.parametrize("name", ROWS)
def test_a_method_learns_saves_loads_and_leaves_the_backbone_alone(name, small, tmp_path):
    if METHODS[name].needs:
        pytest.importorskip(METHODS[name].needs)
    before, numbers = condition(small), weights(small)
    partner, method = make(name, small)
    assert (method.name, method.title) == (name, METHODS[name].title)
    for number, experience in enumerate(TASKS):
        learn((partner, method), experience)
        if number == 0:  # taken up after the first task, it goes on as if never stopped
            for each, folder in ((method, "method"), (partner, "partner")):
                if each is not None:
                    each.save(tmp_path / "one" / folder)
    said = answers(method)
    assert [len(texts) for texts in said] == [2, 2]
    assert condition(small) == before
    assert all(torch.equal(tensor, numbers[key]) for key, tensor in small.model.state_dict().items())

    for each, folder in ((method, "method"), (partner, "partner")):
        if each is not None:
            each.save(tmp_path / "two" / folder)
    ledger = method.ledger()
    assert stored(method, tmp_path / "two" / "method") == (ledger.deployed, ledger.training)
    assert (method.deployed_bytes, method.training_bytes) == (ledger.deployed, ledger.training)
    assert json.loads(json.dumps(method.describe())) == method.describe()
    assert (ledger.deployed > 0) == (name != "zero_shot")
    if name not in OVER_BUDGET:
        assert ledger.deployed <= BUDGET

    for folder, left in (("two", ()), ("one", TASKS[1:])):
        other_partner, other = make(name, small)
        for each, place in ((other_partner, "partner"), (other, "method")):
            if each is not None:
                each.load(tmp_path / folder / place)  # the partner first
        for experience in left:
            learn((other_partner, other), experience)
        assert answers(other) == said
        assert (other.deployed_bytes, other.training_bytes) == (ledger.deployed, ledger.training)


@pytest.mark.parametrize("name", ["sequential_lora", "inducekv"])
def test_another_methods_state_is_refused(name, small, tmp_path):
    make("zero_shot", small)[1].save(tmp_path)
    with pytest.raises(ValueError, match="'zero_shot'"):
        make(name, small)[1].load(tmp_path)
    with pytest.raises(ValueError, match="no saved method"):
        make(name, small)[1].load(tmp_path / "empty")


def test_unknown_names_and_missing_partners_are_refused(small):
    with pytest.raises(ValueError, match="no method 'lora'; known: zero_shot"):
        make_method("lora", small, budget=1, seed=0, stream_length=1)
    with pytest.raises(ValueError, match="memory of 'inducekv'"):
        make_method("nearest_neighbour", small, budget=1, seed=0, stream_length=1)


def test_zero_shot_answers_as_the_plain_backbone(small):
    method = make("zero_shot", small)[1]
    examples = [named(seed, "x") for seed in range(3)]
    assert method.answer(examples) == small.generate(examples, max_new_tokens=4)


def test_retrieved_examples_come_before_the_question_as_turns(small):
    partner, method = make("retrieved_prompt", small)
    learn((partner, method), TASKS[0])
    asked = named(7, "zorb")
    sources = partner.model.answer_all([asked])[0].sources
    assert sources
    best_last = [next(a for a in method.sources.anchors if a.id == s.id).example() for s in reversed(sources)]
    prepared = small.prepare([asked], False, shown=[best_last])
    assert method.answer([asked]) == small.generate(prepared, max_new_tokens=4)
    ids = prepared.batches[0].inputs["input_ids"][0].tolist()
    assert ids.count(tiny.ASSISTANT) == 1 + len(sources)
    assert ids.count(tiny.IMAGE) == (1 + len(sources)) * small.prepare([asked], False).batches[0].inputs["input_ids"][
        0
    ].tolist().count(tiny.IMAGE)
    assert {anchor.answer for anchor in method.sources.anchors} == {"zorb", "ka"}


def test_longer_prompts_are_asked_as_many_times_fewer_at_once(small, monkeypatch):
    partner, method = make("retrieved_prompt", small)
    learn((partner, method), TASKS[0])
    asked, rows = [named(i + 10, "zorb") for i in range(5)], []
    shown = max(len(answer.sources) for answer in partner.model.answer_all(asked))
    assert shown > 1
    generate = small.model.generate

    def counted(**inputs):
        rows.append(len(inputs["input_ids"]))
        return generate(**inputs)

    monkeypatch.setattr(small.model, "generate", counted)
    method.batch_size = 2 * shown + 1
    several = method.answer(asked)
    method.batch_size = 1
    assert method.answer(asked) == several
    assert rows == [2, 2, 1, 1, 1, 1, 1, 1]


# -- what the training loop and the adapters promise, on LoRA


@pytest.fixture(scope="module")
def taught():
    """A LoRA that learned one task, and its backbone."""
    pytest.importorskip("peft")
    backbone = tiny.llava(torch.float32)
    backbone.model.lm_head.weight.requires_grad_(False)
    method = SequentialLora(backbone, BUDGET, Recipe(epochs=20, learning_rate=1e-2, batch_size=2), seed=3)
    method.learn(task("first", "zorb", "zorb"))
    return backbone, method


def test_lora_learns_within_its_bytes(taught):
    _, method = taught
    assert method.answer([named(9, "zorb")]) == ["zorb"]
    losses = method.losses[0]
    assert sum(losses[-4:]) < 0.1 * sum(losses[:4])
    assert 0 < method.deployed_bytes == method.size.nbytes <= BUDGET
    assert method.size.rank >= 2


def test_lora_trains_the_next_task_on_the_same_adapter(taught):
    _, method = taught
    method.learn(task("second", "blick"))
    assert method.answer([named(9, "blick")]) == ["blick"]
    assert method.deployed_bytes == method.size.nbytes


def test_an_adapter_is_undone_when_learning_fails(taught, monkeypatch):
    backbone, method = taught
    before = condition(backbone)
    monkeypatch.setattr(type(backbone), "score", lambda *_: pytest.fail("stopped"))
    with pytest.raises(pytest.fail.Exception):
        method.learn(task("third", "x"))
    assert condition(backbone) == before


def test_a_budget_too_small_for_an_adapter_is_refused(small):
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match="10 bytes is too small for an adapter of rank 1; the smallest that works is"):
        SequentialLora(small, 10)


def test_training_on_a_loss_that_is_no_number_stops_and_says_what_to_do():
    parameter = torch.nn.Parameter(torch.ones(2))
    values = iter([1.0, float("nan")])
    with pytest.raises(TrainingDiverged, match=r"LoRA: after 1 of 4 steps the loss is nan; .* below 0.5"):
        fit(
            [parameter],
            [TrainingBatch(place, (), Prepared((), 0, 0)) for place in range(2)],
            lambda batch: (parameter * next(values)).sum(),
            Recipe(epochs=2, learning_rate=0.5),
            torch.Generator().manual_seed(0),
            SILENT,
            "LoRA",
        )


@pytest.mark.parametrize("name", ["zero_shot", "sequential_lora", "prompt_tuning", "l2p", "inducekv/fast"])
def test_questions_are_answered_so_many_at_once(name, monkeypatch):
    backbone = tiny.llava()
    options = ROWS[name] or {"config": CONFIG}
    method = make_method(name, backbone, budget=BUDGET, seed=0, stream_length=1, max_new_tokens=2, **options)
    method.learn(Experience("words", tuple(named(i, "zorb") for i in range(3)), (named(3, "zorb"),)))
    asked, rows = [named(i + 10, "zorb") for i in range(5)], []
    generate = backbone.model.generate

    def counted(**inputs):
        rows.append(len(inputs["input_ids"]))
        return generate(**inputs)

    monkeypatch.setattr(backbone.model, "generate", counted)
    answers = method.answer(asked)
    method.batch_size = 2
    assert method.answer(asked) == answers
    assert rows == [5, 2, 2, 1]
