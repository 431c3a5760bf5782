"""The compared methods on a tiny model."""

import pytest
import torch

import tiny
from inducekv.continual.methods.sequential_lora import LoraRecipe, SequentialLora
from inducekv.continual.methods.zero_shot import ZeroShot
from inducekv.continual.stream import Experience
from inducekv.examples import Example


def named(seed: int, word: str) -> Example:
    return Example("what?", word, (tiny.picture(seed),), id=f"{word}-{seed}")


def task(name: str, word: str) -> Experience:
    return Experience(name, tuple(named(seed, word) for seed in range(4)), (named(9, word),))


def test_zero_shot_answers_as_the_plain_backbone(llava):
    method = ZeroShot(llava, max_new_tokens=4)
    examples = [named(seed, "x") for seed in range(3)]
    assert method.answer(examples) == llava.generate(examples, max_new_tokens=4)
    assert (method.learns, method.deployed_bytes) == (False, 0)


@pytest.fixture(scope="module")
def taught():
    """A LoRA that learned one task, and the backbone's state from before."""
    pytest.importorskip("peft")
    backbone = tiny.llava(torch.float32)
    backbone.model.lm_head.weight.requires_grad_(False)
    before = {
        "modules": [(name, type(module)) for name, module in backbone.model.named_modules()],
        "weights": {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()},
        "flags": {name: p.requires_grad for name, p in backbone.model.named_parameters()},
        "attributes": set(vars(backbone.model)),
    }
    method = SequentialLora(backbone, 40_000, LoraRecipe(epochs=20, learning_rate=1e-2, batch_size=2), seed=3)
    method.learn(task("first", "zorb"))
    return backbone, before, method


def test_lora_learns_within_its_bytes(taught):
    _, _, method = taught
    assert method.answer([named(9, "zorb")]) == ["zorb"]
    losses = method.losses[0]
    assert sum(losses[-4:]) < 0.1 * sum(losses[:4])
    assert 0 < method.deployed_bytes <= 40_000
    assert method.deployed_bytes == method.size.nbytes
    assert method.size.rank >= 2


def test_lora_trains_the_next_task_on_the_same_adapter(taught):
    _, _, method = taught
    method.learn(task("second", "blick"))
    assert method.answer([named(9, "blick")]) == ["blick"]
    assert method.deployed_bytes == method.size.nbytes


def test_lora_leaves_the_backbone_as_it_was(taught):
    backbone, before, method = taught
    method.answer([named(9, "zorb")])
    model = backbone.model
    assert [(name, type(module)) for name, module in model.named_modules()] == before["modules"]
    assert {name: p.requires_grad for name, p in model.named_parameters()} == before["flags"]
    assert set(vars(model)) == before["attributes"]
    assert all(p.grad is None for p in model.parameters())
    assert all(torch.equal(tensor, before["weights"][name]) for name, tensor in model.state_dict().items())


def test_lora_is_undone_when_learning_fails(taught, monkeypatch):
    backbone, before, method = taught
    monkeypatch.setattr(type(backbone), "score", lambda *_: pytest.fail("stopped"))
    with pytest.raises(pytest.fail.Exception):
        method.learn(task("third", "x"))
    assert [(name, type(module)) for name, module in backbone.model.named_modules()] == before["modules"]


def test_a_budget_too_small_for_an_adapter_is_refused(llava):
    pytest.importorskip("peft")
    with pytest.raises(ValueError, match="10 bytes is too small"):
        SequentialLora(llava, 10)
