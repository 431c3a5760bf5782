"""Every mechanism of the trained methods on a tiny model of every family."""

import pytest
import torch

import tiny
import tiny_families
from inducekv.attention import attached
from inducekv.continual.methods import make_method
from inducekv.continual.methods.prefix import prompts_as_memory
from inducekv.continual.methods.training import Recipe
from inducekv.continual.stream import Experience
from inducekv.examples import Example

pytest.importorskip("peft")

ONE_OF_EACH = ("moelora", "osft", "prompt_tuning", "l2p", "cartridge")
"""A change of the linears, another one, a prompt for all rows, one for each row, and keys and values."""


@pytest.mark.parametrize("family", tiny_families.MODELS)
def test_trained_methods_work_in_every_family(family):
    backbone = tiny_families.model(family)
    pictures = (tiny.picture(1),) if backbone.family.image_token is not None else ()
    train = tuple(Example("what?", word, pictures, id=word) for word in ("zorb", "ka"))
    experience = Experience("task", train, train)
    backbone.generate(train, max_new_tokens=1)  # transformers itself leaves a mark on some models, once
    before = {name: tensor.clone() for name, tensor in backbone.model.state_dict().items()}
    attributes = [sorted(vars(module)) for module in backbone.model.modules()]
    plain = backbone.score(train).token_nll
    for name in ONE_OF_EACH:
        method = make_method(
            name,
            backbone,
            budget=30_000,
            seed=0,
            stream_length=2,
            max_new_tokens=2,
            recipe=Recipe(epochs=2, learning_rate=1e-3, batch_size=2),
        )
        method.learn(experience)
        assert len(method.answer(train)) == 2
        assert torch.isfinite(torch.tensor(method.losses)).all(), name
        assert method.deployed_bytes == method.ledger().deployed <= 30_000
        assert torch.equal(backbone.score(train).token_nll, plain), name
    assert [sorted(vars(module)) for module in backbone.model.modules()] == attributes
    assert all(torch.equal(tensor, before[key]) for key, tensor in backbone.model.state_dict().items())


@torch.no_grad()
def test_prompts_as_memory_are_prompts_before_the_question():
    backbone = tiny.llama()
    words = backbone.model.get_input_embeddings()
    prompts, asked = words(torch.tensor([[40, 41, 42]])), torch.tensor([[50, 51, 52, 53], [60, 61, 62, 63]])
    whole = torch.cat([prompts.expand(2, -1, -1), words(asked)], 1)
    expected = backbone.model(inputs_embeds=whole).logits[:, 3:]
    with attached(backbone, prompts_as_memory(backbone, prompts, 2)):
        assert torch.allclose(backbone.model(input_ids=asked).logits, expected, atol=1e-5)  # rotary angles are float32
