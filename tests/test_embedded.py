"""The model that ships: it loads like any other, reads its memory, and its tasks ask what they promise."""

import numpy as np
import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoProcessor

from inducekv import Backbone, InducedModel, InduceKVConfig
from inducekv.continual.graders import accuracy
from inducekv.embedded import path
from inducekv.embedded.drawings import draw, random_glyph
from inducekv.embedded.tasks import alphabet, attribute, base_skills, counts, demo_stream, gauges, pairs
from inducekv.embedded.words import made_up_names, odd_name


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return Backbone.from_pretrained(path())


def test_it_is_small_and_loads_with_the_auto_classes() -> None:
    assert sum(file.stat().st_size for file in path().glob("*.safetensors")) <= 8_000_000
    assert not [file for file in path().iterdir() if file.suffix in (".bin", ".pt", ".pkl")]
    model, processor = AutoModelForImageTextToText.from_pretrained(path()), AutoProcessor.from_pretrained(path())
    assert model.config.model_type == "idefics3" and model.dtype == torch.float32
    text = processor.apply_chat_template([{"role": "user", "content": "hi"}], add_generation_prompt=True)
    assert text == "<|user|>hi<|assistant|>"


def test_it_can_spell_anything(backbone: Backbone) -> None:
    tokenizer, generator = backbone.processor.tokenizer, np.random.default_rng(0)
    for name in [*made_up_names(50, generator), *(odd_name(generator) for _ in range(50)), "Åland Islands", "猫"]:
        assert tokenizer.decode(tokenizer(name, add_special_tokens=False).input_ids) == name


def test_base_skills_without_memory(backbone: Backbone) -> None:
    asked = base_skills(80, seed=900)
    answers = backbone.generate(asked, max_new_tokens=8)
    assert accuracy(answers, [example.answer or "" for example in asked]) >= 90


def test_it_reads_new_names_from_memory_and_composes_them(backbone: Backbone) -> None:
    train, test = pairs(900, train=2, test=32)
    model = InducedModel.from_pretrained(backbone, config=InduceKVConfig(budget="256KiB"))
    model.learn(train, task="pairs")
    answers = model.answer_all(test, max_new_tokens=12)
    expected = [example.answer or "" for example in test]
    assert accuracy([answer.text for answer in answers], expected) >= 50
    stored = {entry.answer for entry in model.memory.entries}
    assert not stored & set(expected), "no entry holds a pair that is asked"


@pytest.mark.parametrize("make", [pairs, gauges, counts])
def test_composing_tasks_never_show_what_they_ask(make) -> None:
    train, test = make(900)
    shown, asked = {e.answer for e in train}, {e.answer for e in test}
    assert not shown & asked
    words = {word for answer in shown for word in (answer or "").split()}
    assert all((answer or "").split()[-1] in words for answer in asked), "every asked name is in some example"


def test_tasks_follow_their_seed() -> None:
    first, again, other = (alphabet(seed, classes=3, train=2, test=1) for seed in (5, 5, 6))
    assert [e.identifier for e in first[0]] == [e.identifier for e in again[0]]
    assert {e.answer for e in first[0]} != {e.answer for e in other[0]}
    assert len({name for name, _, _ in demo_stream(900)}) >= 5


def test_drawings_vary_but_follow_their_generator() -> None:
    glyph = random_glyph(np.random.default_rng(1))
    pictures = [draw(glyph, np.random.default_rng(seed)) for seed in (2, 2, 3)]
    assert pictures[0].shape == (32, 32, 3) and pictures[0].dtype == np.uint8
    assert (pictures[0] == pictures[1]).all() and (pictures[0] != pictures[2]).any()


def test_mistakes_are_named() -> None:
    with pytest.raises(ValueError, match="unknown attribute 'smell'; choose one of colour"):
        attribute(0, "smell")
    with pytest.raises(ValueError, match="seed must not be negative, got -1"):
        alphabet(-1)
