"""What families differ in: sliding windows, rotary embeddings, and what is refused, with the reason."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import tiny
import tiny_families
from inducekv.attention import attached
from inducekv.backbone import Backbone
from inducekv.config import InduceKVConfig
from inducekv.entry import Entry
from inducekv.families import family_of, refusals
from inducekv.injection import Injection, build_injection
from inducekv.memory_config import reading_of
from inducekv.model import InducedModel
from inducekv.payloads import Payloads
from inducekv.retrieval import Calibration, Retrieved
from test_family_parity import answered, example, reference
from test_parity import TOLERANCE, inputs_of, one_prompt

WINDOW = 24


def windowed(name: str) -> Backbone:
    if name == "gemma3":
        return tiny_families.gemma3(WINDOW)
    options: dict[str, Any] = tiny_families.WINDOWED if name == "gemma3_text" else {}
    return tiny_families.text_only(name, **options, sliding_window=WINDOW)


def injected(backbone: Backbone, learned: list[Any], visibility: str) -> Injection:
    payloads = Payloads.of(backbone.encode(learned))
    indices, valid = torch.arange(len(learned))[None], torch.ones(1, len(learned), dtype=torch.bool)
    retrieved = Retrieved(indices, valid / len(learned), valid.float(), valid)
    calibration = Calibration.identity(backbone.layers)
    injection = build_injection(payloads, retrieved, calibration, "none", backbone, visibility)  # type: ignore[arg-type]
    assert injection is not None
    return injection


STATIC = {"cache_implementation": "static", "disable_compile": True}


@pytest.mark.parametrize("options", [{}, {"use_cache": False}, STATIC], ids=["cache", "no cache", "static cache"])
@pytest.mark.parametrize("name", ["gemma3", "gemma3_text", "mistral"])
def test_within_the_window_memory_reads_as_prompt_tokens(name: str, options: dict[str, Any]) -> None:
    """Memory and question together are longer than the window, so that part of the memory is out of sight."""
    backbone = windowed(name)
    learned, asked = example(backbone, 1), example(backbone, 2, False)
    assert one_prompt(backbone, [learned], asked)["input_ids"].shape[1] > WINDOW + 8
    with attached(backbone, injected(backbone, [learned], "window")):
        logits, new, _ = answered(backbone, inputs_of(backbone, [asked]), **options)
    expected = reference(backbone, [learned], asked, new[0])[:-1]
    assert (logits[0] - expected).abs().max() < TOLERANCE
    with attached(backbone, injected(backbone, [learned], "all")):
        everywhere, _, _ = answered(backbone, inputs_of(backbone, [asked]), **options)
    assert (everywhere[0, 0] - expected[0]).abs().max() > 1e-3


@pytest.mark.parametrize("name", ["gemma3", "gemma3_text", "mistral"])
def test_on_all_layers_memory_stays_in_sight_of_any_window(name: str) -> None:
    """As the same model reads it whose window is wide; the question itself fits into the window."""
    backbone, asked = windowed(name), tiny.example(0, images=0, answer=False)
    learned = example(backbone, 1)
    injection = injected(backbone, [learned], "all")
    wide = tiny_families.MODELS[name]()
    assert inputs_of(backbone, [asked])["input_ids"].shape[1] + 3 < WINDOW < injection.mask.shape[1] + 9
    outputs = []
    for model in (backbone, wide):
        with attached(model, injection):
            outputs.append(answered(model, inputs_of(model, [asked]))[0])
    assert (outputs[0] - outputs[1]).abs().max() < TOLERANCE


def test_windows_look_back_over_several_entries_and_left_padding() -> None:
    """A token of the memory is read exactly where its distance in positions is less than the window."""
    backbone = windowed("gemma3_text")
    learned = [example(backbone, seed) for seed in (1, 3, 4)]
    injection = injected(backbone, learned, "window")
    lengths = [inputs_of(backbone, [e], True)["input_ids"].shape[1] for e in learned]
    assert injection.positions is not None
    assert sorted(injection.positions[0][injection.mask[0]].tolist()) == list(range(-sum(lengths), 0))
    asked = [example(backbone, 2, False), example(backbone, 8, False)]
    rows = injection.rows(torch.tensor([0, 0]))
    with attached(backbone, rows):
        together = answered(backbone, inputs_of(backbone, asked))[0]
    for row, question in enumerate(asked):
        with attached(backbone, injection):
            alone = answered(backbone, inputs_of(backbone, [question]))[0]
        assert (together[row] - alone[0]).abs().max() < TOLERANCE
    far = injection.positions[0] < -WINDOW
    assert far.any()
    for layer, sliding in enumerate(kind == "sliding_attention" for kind in backbone.text_model.config.layer_types):
        if sliding:
            injection.values[layer][:, :, far] += 100
    with attached(backbone, injection):
        assert torch.equal(answered(backbone, inputs_of(backbone, asked[1:]))[0], alone)


def test_the_configuration_says_what_windows_see() -> None:
    backbone, outputs = windowed("gemma3_text"), {}
    inputs = inputs_of(backbone, [example(backbone, 2, False)])
    encoded = backbone.encode([example(backbone, 1)])[0]
    for visibility in ("all", "window"):
        config = InduceKVConfig(
            budget="4MiB",
            payload="none",
            payload_dtype="float32",
            abstain=False,
            visibility=visibility,
            retrieval="two_pass",
        )
        assert f'"visibility":"{visibility}"' in reading_of(config)
        model = InducedModel.from_pretrained(backbone, config=config)
        model.memory.add(
            Entry.of(encoded, id="one", task="t", payload_dtype="float32", key_dtype=model.memory.layout.key_dtype)
        )
        with model.attached():
            outputs[visibility] = answered(backbone, inputs)[0]
    with attached(backbone, injected(backbone, [example(backbone, 1)], "window")):
        assert (answered(backbone, inputs)[0] - outputs["window"]).abs().max() < 1e-4
    assert (outputs["all"] - outputs["window"]).abs().max() > 1e-3


def test_attention_mass_is_what_a_model_with_capped_logits_reports() -> None:
    backbone = tiny_families.MODELS["paligemma"]()
    backbone.text_model.set_attn_implementation("eager")  # as newer releases choose; sdpa caps nothing
    injection = injected(backbone, [example(backbone, 1), example(backbone, 3)], "all")
    inputs = inputs_of(backbone, [example(backbone, 2, False)])
    for layer in backbone.text_model.layers:
        layer.self_attn.attn_logit_softcapping = 0.5  # so low that it matters
    with attached(backbone, injection, record_mass=True) as attachment, torch.no_grad():
        output = backbone.model(**inputs, output_attentions=True)
    tokens = injection.mask.shape[1]
    weights = torch.stack(output.attentions)[:, 0, :, :, :tokens].mean((0, 1, 2))
    expected = torch.stack([weights[injection.slots[0] == slot].sum() for slot in (0, 1)])
    assert (attachment.mass[0].double() - expected.double()).abs().max() < TOLERANCE


def test_yarn_scales_and_moves_keys_as_the_model_does() -> None:
    rotary = tiny_families.model("llama_yarn").text_model.rotary_emb
    assert rotary.attention_scaling > 1.1, "the parity suite must see a scaling that matters"
    glm, phi3 = (tiny_families.model(name).text_model for name in ("glm", "phi3"))
    for text in (glm, phi3):
        cos, _ = text.rotary_emb(torch.zeros(1), torch.arange(2)[None])
        assert cos.shape[-1] == 8 < text.layers[0].self_attn.head_dim, "the parity suite must see a partial embedding"


@pytest.mark.parametrize(
    ("kind", "options", "reason"),
    [
        ("bloom", {}, r"'bloom' is not supported; supported: .*llava.*row in FAMILIES of src/inducekv/families\.py"),
        ("t5", {}, "encoder-decoder"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "'dynamic'.*length"),
        ("llava", {"text_config": {"model_type": "olmo2"}}, r"text decoder 'olmo2'.*DECODERS of src/inducekv/families"),
    ],
)
def test_refusals_name_the_reason_and_what_to_add(kind: str, options: dict[str, Any], reason: str) -> None:
    config = AutoConfig.for_model(kind, **options)
    assert len(refusals(config)) == 1
    with pytest.raises(ValueError, match=reason):
        raise ValueError(refusals(config)[0])


def test_a_model_that_is_refused_is_refused_when_it_is_wrapped() -> None:
    rope = {"rope_type": "longrope", "rope_theta": 1e4, "short_factor": [1.0] * 8, "long_factor": [2.0] * 8}
    rope |= {"original_max_position_embeddings": 64, "factor": 4.0}
    config = AutoConfig.for_model("phi3", **{**tiny_families.TEXT, "rope_parameters": rope})
    with pytest.raises(ValueError, match=r"'longrope' is not supported: its frequencies change"):
        family_of(AutoModelForCausalLM.from_config(config))
