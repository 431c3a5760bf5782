"""In-flight retrieval: one pass finds and reads what two passes would, for every family and way of running."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny_families
from inducekv.attention import InFlight, attached
from inducekv.backbone import Backbone
from inducekv.config import InduceKVConfig
from inducekv.decoder import chosen_key_layer
from inducekv.entry import Entry
from inducekv.memory_config import reading_of
from inducekv.model import InducedModel
from inducekv.retrieval_key import retrieval_key
from test_attention import parameters_of, trace
from test_family_parity import answered, example
from test_parity import TOLERANCE, inputs_of, one_prompt

LEARNED = (1, 3, 4, 6)


def taught(backbone: Backbone, seeds: tuple[int, ...] = LEARNED, **changes: Any) -> InducedModel:
    """A model with some whole examples in its memory, without having learned anything."""
    fields = {"budget": "4MiB", "payload_dtype": "float32", "abstain": False, "top_k": 2}
    fields |= {"retrieval": "in_flight", **changes}
    model = InducedModel.from_pretrained(backbone, config=InduceKVConfig(**fields))
    layers = model.memory.layout.layers
    learned = [example(backbone, seed) for seed in seeds]
    for i, encoded in enumerate(
        backbone.encode(learned, key_layer=model.config.key_layer, key_pool=model.config.key_pool)
    ):
        entry = Entry.of(
            encoded,
            id=f"e{seeds[i]}",
            task="things",
            payload_dtype="float32",
            layers=layers,
            key_dtype=model.config.key_dtype,
        )
        model.memory.add(entry)
    model.memory.metadata["reading"] = reading_of(model.config)
    return model


def in_two_passes(model: InducedModel) -> InducedModel:
    """The same memory, read in two passes."""
    return InducedModel(model.backbone, model.memory, model.config.replace(retrieval="two_pass"))


def greedy(backbone: Backbone) -> dict[str, Any]:
    return inputs_of(backbone, [example(backbone, 2, False)])


def left_padded_batch(backbone: Backbone) -> dict[str, Any]:
    return inputs_of(backbone, [example(backbone, seed, False) for seed in (2, 5, 8)])


def beams(backbone: Backbone) -> dict[str, Any]:
    return {**left_padded_batch(backbone), "num_beams": 2}


def no_cache(backbone: Backbone) -> dict[str, Any]:
    return {**greedy(backbone), "use_cache": False}


def static_cache(backbone: Backbone) -> dict[str, Any]:
    return {**left_padded_batch(backbone), "cache_implementation": "static", "disable_compile": True}


def inputs_embeds(backbone: Backbone) -> dict[str, Any]:
    if backbone.family.token_types is not None:
        pytest.skip("generate takes no embeddings where token types decide what is seen")
    inputs = inputs_of(backbone, [example(backbone, 2, False, picture=False)])
    embeds = backbone.model.get_input_embeddings()(inputs["input_ids"])
    return {"inputs_embeds": embeds, "attention_mask": inputs["attention_mask"]}


CASES = [(family, way) for family in tiny_families.MODELS for way in (left_padded_batch, beams)] + [
    (family, way)
    for family in ("llava", "idefics3", "qwen2_5_vl", "gemma3", "paligemma", "llama")
    for way in (greedy, no_cache, static_cache, inputs_embeds)
]


@pytest.mark.parametrize(("family", "way"), CASES, ids=lambda x: getattr(x, "__name__", x).replace("_", " "))
def test_one_pass_reads_what_two_passes_read(family: str, way: Callable[[Backbone], dict[str, Any]]) -> None:
    backbone = tiny_families.model(family)
    inputs = way(backbone)
    try:
        plain, plain_tokens, _ = answered(backbone, inputs)
    except (AttributeError, IndexError, ValueError, RuntimeError) as error:
        pytest.skip(f"without any memory, too, this release of transformers fails: {error}")
    key_pool = "last" if "inputs_embeds" in inputs else "last_and_text"  # which needs to know the words
    model = taught(backbone, key_pool=key_pool)
    with model.attached():
        one, tokens, _ = answered(backbone, inputs)
    with in_two_passes(model).attached():
        two, expected, _ = answered(backbone, inputs)
    assert torch.equal(tokens, expected)
    assert (one - two).abs().max() < TOLERANCE
    if torch.equal(plain_tokens, tokens):
        assert (one - plain).abs().max() > 1e-3, "the memory must matter for this test to mean anything"


@torch.no_grad()
@pytest.mark.parametrize("family", ["llama", "llava", "idefics3", "qwen2_5_vl", "qwen3_vl", "smollm3"])
def test_layers_above_the_key_layer_read_as_if_the_memory_were_prompt_tokens(family: str) -> None:
    """The reference: one prompt with everything in it, whose lower layers do not let the question see the example."""
    backbone = tiny_families.model(family)
    asked = example(backbone, 2, False)
    model = taught(backbone, (1,), top_k=1)
    with model.attached():
        got = backbone.model(**inputs_of(backbone, [asked])).logits[0, -1]
    inputs = one_prompt(backbone, [example(backbone, 1)], asked)
    total, own = inputs["input_ids"].shape[1], inputs_of(backbone, [asked])["input_ids"].shape[1]
    block = torch.arange(total) >= total - own
    sees = torch.ones(total, total, dtype=torch.bool).tril() & (block[:, None] == block[None])

    def apart(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        return args, {**kwargs, "attention_mask": sees[None, None]}

    key_layer = chosen_key_layer(None, backbone.layers)
    assert 0 < key_layer < backbone.layers
    hooks = [x.register_forward_pre_hook(apart, with_kwargs=True) for x in backbone.text_model.layers[:key_layer]]
    try:
        expected = backbone.model(**inputs).logits[0, -1]
    finally:
        for hook in hooks:
            hook.remove()
    everywhere = backbone.model(**inputs).logits[0, -1]
    assert (got - expected).abs().max() < TOLERANCE
    assert (everywhere - expected).abs().max() > 1e-3, "the lower layers must matter for this test to mean anything"


def test_a_prompt_is_read_once_and_only_prompts_are_looked_up(llava: Backbone) -> None:
    model, passes, looked_up = taught(llava), [], []
    inputs = left_padded_batch(llava)
    hook = llava.text_model.register_forward_hook(lambda *given: passes.append(1))
    with model.attached() as attachment:
        assert attachment._in_flight is not None
        provide = attachment._in_flight.provide
        object.__setattr__(attachment._in_flight, "provide", lambda *x: looked_up.append(1) or provide(*x))
        answered(llava, inputs)
        answered(llava, inputs)
    hook.remove()
    assert (len(passes), len(looked_up)) == (6, 2)  # three new tokens a call


def test_keys_in_flight_are_those_of_a_pass_of_their_own(backbone: Backbone) -> None:
    asked = [example(backbone, seed, False) for seed in (2, 5, 8)]
    caught: list[Tensor] = []
    layer = chosen_key_layer(None, backbone.layers)

    def catch(*state: Any) -> None:
        hidden, real, ids = state
        caught.append(retrieval_key(backbone, hidden, "last_and_text", real, ids))

    with attached(backbone, InFlight(layer, catch)):
        answered(backbone, inputs_of(backbone, asked))
    assert torch.allclose(caught[0], backbone.query_keys(asked), atol=1e-6)


def test_payloads_of_lower_layers_are_not_stored_and_the_answers_stay(llava: Backbone, tmp_path: Any) -> None:
    upper, whole = taught(llava), taught(llava, retrieval="two_pass")
    layers, key_layer = llava.layers, chosen_key_layer(None, llava.layers)
    assert upper.memory.layout.layers == tuple(range(key_layer, layers))
    stored = [m.memory.bytes_by_kind()["payload"] for m in (upper, whole)]
    assert stored[0] * layers == stored[1] * (layers - key_layer)
    upper.save_memory(tmp_path)
    loaded = InducedModel.from_pretrained(llava, memory=tmp_path)
    assert loaded.config.retrieval == "in_flight"
    asked = [example(llava, seed, False) for seed in (2, 5)]
    first, second = upper.answer_all(asked, max_new_tokens=3), loaded.answer_all(asked, max_new_tokens=3)
    assert [(a.text, [s.id for s in a.sources]) for a in first] == [(a.text, [s.id for s in a.sources]) for a in second]


def test_sources_are_right_under_beams(llava: Backbone) -> None:
    model = taught(llava)
    asked = [example(llava, seed, False) for seed in (2, 5, 8)]
    plain = model.answer_all(asked, max_new_tokens=2)
    beamed = model.answer_all(asked, max_new_tokens=2, num_beams=3)
    assert [[s.id for s in a.sources] for a in plain] == [[s.id for s in a.sources] for a in beamed]
    one_by_one = [in_two_passes(model).answer_all([e], max_new_tokens=2)[0] for e in asked]
    assert [[s.id for s in a.sources] for a in plain] == [[s.id for s in a.sources] for a in one_by_one]


def test_wrong_layers_are_refused(llava: Backbone) -> None:
    with pytest.raises(ValueError, match="key_layer below"):
        InducedModel.from_pretrained(llava, config=InduceKVConfig(key_layer=-1, retrieval="in_flight"))
    whole = taught(llava, retrieval="two_pass")
    one_pass = InducedModel(llava, whole.memory, whole.config.replace(retrieval="in_flight"))
    with pytest.raises(ValueError, match="use retrieval='two_pass'"), one_pass.attached():
        pass


def test_a_prompt_that_does_not_fit_beside_its_memory_is_refused(llava: Backbone) -> None:
    model, before, weights = taught(llava), trace(llava.model), parameters_of(llava.model)
    config, inputs = llava.text_model.config, greedy(llava)
    fits = config.max_position_embeddings
    for reader in (model, in_two_passes(model)):
        config.max_position_embeddings = inputs["input_ids"].shape[1] + 5
        try:
            with pytest.raises(ValueError, match="shorten the prompt"), reader.attached():
                answered(llava, inputs)
        finally:
            config.max_position_embeddings = fits
        answered(llava, inputs)
        assert trace(llava.model) == before and all(map(torch.equal, parameters_of(llava.model), weights))
