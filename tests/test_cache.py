"""Memory as a prefilled cache says the same as memory as prompt tokens, or is refused with the reason."""

import pytest
import torch

import tiny
import tiny_families
from inducekv.attention import attached
from inducekv.cache import as_cache
from inducekv.config import InduceKVConfig
from inducekv.entry import Entry
from inducekv.model import InducedModel
from inducekv.retrieval import Calibration
from test_families import windowed
from test_family_parity import answered, check, example
from test_parity import inputs_of, memory_of

CACHED = [name for name in tiny_families.MODELS if name not in ("paligemma", "gemma3")]


@pytest.mark.parametrize("family", CACHED)
def test_a_prefilled_cache_reads_as_prompt_tokens(family: str) -> None:
    """Left-padded rows, each with a memory of its own length, pictures on both sides."""
    backbone = tiny_families.model(family)
    learned = [[example(backbone, 3)], [example(backbone, 4, picture=False)], []]
    asked = [example(backbone, seed, False) for seed in (2, 5, 8)]
    cache, kwargs = as_cache(backbone, memory_of(backbone, learned), inputs_of(backbone, asked))
    logits, new, _ = answered(backbone, kwargs, past_key_values=cache)
    for i, (entries, question) in enumerate(zip(learned, asked, strict=True)):
        check(backbone, logits[i], entries, question, new[i])


@pytest.mark.parametrize("family", ["llava", "llama"])
def test_beams_read_the_same_from_a_cache_and_from_an_attached_memory(family: str) -> None:
    backbone = tiny_families.model(family)
    inputs = inputs_of(backbone, [example(backbone, seed, False) for seed in (2, 5)])
    injection = memory_of(backbone, [[example(backbone, 1)], [example(backbone, 3), example(backbone, 4)]])
    cache, kwargs = as_cache(backbone, injection, inputs, beams=3)
    got = answered(backbone, kwargs, past_key_values=cache, num_beams=3)[1]
    with attached(backbone, injection):
        assert torch.equal(got, answered(backbone, inputs, num_beams=3)[1])


@pytest.mark.parametrize("family", ["gemma3_text", "mistral"])
def test_a_cache_shows_sliding_layers_their_window(family: str) -> None:
    backbone = windowed(family)
    learned, asked = example(backbone, 1), example(backbone, 2, False)
    cache, kwargs = as_cache(backbone, memory_of(backbone, [[learned]]), inputs_of(backbone, [asked]))
    logits, new, _ = answered(backbone, kwargs, past_key_values=cache)
    check(backbone, logits[0], [learned], asked, new[0])


def test_nothing_to_read_is_the_plain_model() -> None:
    backbone = tiny.llama()
    inputs = inputs_of(backbone, [example(backbone, 2, False)])
    cache, kwargs = as_cache(backbone, None, inputs)
    assert torch.equal(answered(backbone, kwargs, past_key_values=cache)[0], answered(backbone, inputs)[0])


def test_what_a_cache_cannot_say_is_refused() -> None:
    backbone, alpha = tiny_families.model("llama"), torch.tensor([[0.3, 0.7]])
    inputs = inputs_of(backbone, [example(backbone, 2, False)])
    entries = [[example(backbone, 1), example(backbone, 3)]]
    with pytest.raises(ValueError, match=r"'log' and the mass.*attention logits.*attached"):
        as_cache(backbone, memory_of(backbone, entries, "log", alpha), inputs)
    as_cache(backbone, memory_of(backbone, entries, "sqrt_max", alpha), inputs)
    with pytest.raises(ValueError, match="for 2 rows, the inputs have 1"):
        as_cache(backbone, memory_of(backbone, entries * 2), inputs)
    with pytest.raises(ValueError, match="needs input_ids"):
        as_cache(backbone, None, {"inputs_embeds": torch.zeros(1, 2, 64)})
    for family in ("paligemma", "gemma3"):
        backbone = tiny_families.model(family)
        injection = memory_of(backbone, [[example(backbone, 1)]])
        with pytest.raises(ValueError, match=f"'{family}' looks up token types"):
            as_cache(backbone, injection, inputs_of(backbone, [example(backbone, 2, False)]))


def test_a_model_with_its_memory_gives_out_caches() -> None:
    backbone = tiny_families.model("llama")
    config = InduceKVConfig(
        budget="4MiB",
        payload="none",
        payload_dtype="float32",
        weighting="sqrt_max",
        abstain=False,
        retrieval="two_pass",
    )
    model = InducedModel.from_pretrained(backbone, config=config)
    learned = [example(backbone, seed) for seed in (1, 3, 4)]
    for i, encoded in enumerate(backbone.encode(learned)):
        model.memory.add(
            Entry.of(encoded, id=str(i), task="t", payload_dtype="float32", key_dtype=model.memory.layout.key_dtype)
        )
    inputs = inputs_of(backbone, [example(backbone, seed, False) for seed in (2, 5)])
    cache, kwargs = model.as_cache(inputs)
    got = answered(backbone, kwargs, past_key_values=cache)[0]
    with model.attached():
        assert (got - answered(backbone, inputs)[0]).abs().max() < 1e-4
    with pytest.raises(ValueError, match="'log'"):
        model.as_cache(inputs, weighting="log")


@pytest.mark.parametrize("weighting", ["sqrt_max", "sqrt", "none"])
def test_a_cache_can_say_what_was_learned_without_log(weighting: str) -> None:
    backbone = tiny_families.model("llama")
    fields = {"budget": "1MiB", "abstain": False, "top_k": 3, "outer_steps": 2, "calibration_steps": 40}
    model = InducedModel.from_pretrained(backbone, config=InduceKVConfig(**fields, weighting=weighting))
    model.learn([example(backbone, seed) for seed in range(8)], task="t")
    start = Calibration.initial(backbone.layers, model.config.temperature)
    assert not torch.equal(model.memory.calibration.phi_lambda, start.phi_lambda), "phi was fitted"
    inputs = inputs_of(backbone, [example(backbone, 21, False)])
    with model.attached():
        expected = answered(backbone, inputs)[0]
    cache, kwargs = model.as_cache(dict(inputs))
    torch.testing.assert_close(answered(backbone, kwargs, past_key_values=cache)[0], expected)
