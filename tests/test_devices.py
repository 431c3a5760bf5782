"""Models that `device_map` has spread out: layers on another device, weights on disk.

A second device is pretended (`two_devices`); on several real accelerators this is untested.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate import dispatch_model

import tiny_families
from inducekv.attention import attached
from inducekv.backbone import Backbone
from inducekv.cache import as_cache
from inducekv.check import _compare
from inducekv.examples import Example
from test_attention import trace
from test_families import injected, windowed
from test_family_parity import answered, example
from test_in_flight import taught
from test_parity import inputs_of, memory_of
from two_devices import FAR, TwoDevices, moved

FAMILIES = ["llava", "qwen2_5_vl", "gemma3", "idefics3"]


def on_disk(backbone: Backbone, folder: Path, chosen: Callable[[str], bool]) -> Backbone:
    """The same model with the weights of some modules on disk, as `device_map="auto"` does when memory is short."""
    modules = backbone.model.named_modules()
    held = [name for name, module in modules if [*module.parameters(False), *module.buffers(False)]]
    places = {name: "disk" if chosen(name) else "cpu" for name in held}
    model = dispatch_model(backbone.model, places, main_device="cpu", offload_dir=str(folder), force_hooks=True)
    return Backbone(model, backbone.processor)


def examples(backbone: Backbone) -> tuple[list[list[Example]], list[Example]]:
    """Two rows: what each has learned, and its question."""
    learned = [[example(backbone, 1)], [example(backbone, 3), example(backbone, 4)]]
    return learned, [example(backbone, seed, False) for seed in (2, 5)]


def hooks_of_accelerate(model: Any) -> list[Any]:
    return [(module.__dict__.get("_hf_hook"), module.__dict__.get("forward")) for module in model.modules()]


OFFLOADED: dict[str, Callable[[str], bool]] = {
    "some layers": lambda name: ".layers.1." in name or "embed_tokens" in name or name == "lm_head",
    "the whole decoder": lambda name: "vision" not in name and "connector" not in name,
}


@pytest.mark.parametrize("what", OFFLOADED)
@pytest.mark.parametrize("family", FAMILIES)
def test_offloaded_weights_change_nothing(family: str, what: str, tmp_path: Path) -> None:
    here = tiny_families.model(family)
    there = on_disk(tiny_families.MODELS[family](), tmp_path, OFFLOADED[what])
    assert any(p.device.type == "meta" for p in there.model.parameters())
    assert there.device == torch.device("cpu") and there.dtype == here.dtype and there.softcap == here.softcap
    assert there.fingerprint() == here.fingerprint()
    learned, asked = examples(here)
    inputs, injection = inputs_of(here, asked), memory_of(here, learned)
    answered(there, inputs)  # transformers itself leaves a note on modules that have run
    before, hooks = trace(there.model), hooks_of_accelerate(there.model)
    assert torch.equal(memory_of(there, learned).keys[1], injection.keys[1])
    outputs = []
    for backbone in (here, there):
        with attached(backbone, injection):
            outputs.append(answered(backbone, inputs)[0])
    assert torch.equal(*outputs)
    scored = [backbone.score([example(here, 2)], memory_of(here, learned[:1])).nll for backbone in (here, there)]
    assert torch.equal(*scored)
    assert torch.equal(there.query_keys(asked), here.query_keys(asked))
    assert _compare(there).passed
    assert trace(there.model) == before and hooks_of_accelerate(there.model) == hooks


def test_a_model_without_numbers_is_refused() -> None:
    backbone = tiny_families.MODELS["llama"]()
    empty = Backbone(backbone.model.to("meta"), backbone.processor)
    with pytest.raises(ValueError, match=r"LlamaForCausalLM are on the meta device.*from_pretrained"):
        empty.encode([example(empty, 1)])


def over_two_devices(backbone: Backbone) -> Backbone:
    """The first layer stays; the others, the norm and the head go to the second device."""
    first, *others = backbone.text_model.layers
    moved(first, "cpu")
    for module in (*others, backbone.text_model.norm, backbone.model.get_output_embeddings()):
        moved(module, FAR)
    return backbone


@pytest.mark.parametrize("weighting", ["none", "log"])
@pytest.mark.parametrize("family", FAMILIES)
def test_memory_follows_each_layer_to_its_device(family: str, weighting: str) -> None:
    here, alpha = tiny_families.model(family), torch.tensor([[0, 1.0], [0.3, 0.7]])
    learned, asked = examples(here)
    with TwoDevices():
        there = over_two_devices(tiny_families.MODELS[family]())
        inputs, injection = inputs_of(here, asked), memory_of(there, learned, weighting, alpha)
        own = memory_of(here, learned, weighting, alpha)
        assert torch.equal(own.keys[1], injection.keys[1])
        outputs = []
        for backbone, memory in ((here, own), (there, injection)):
            with attached(backbone, memory, record_mass=True) as attachment:
                logits = answered(backbone, inputs)[0]
            outputs.append((logits, attachment.mass.cpu()))
        assert torch.equal(outputs[0][0], outputs[1][0].cpu()) and torch.equal(outputs[0][1], outputs[1][1])
        assert torch.equal(there.query_keys(asked), here.query_keys(asked))
        scored = [backbone.score([example(here, 2)], memory_of(here, learned[:1])).nll for backbone in (here, there)]
        assert torch.equal(*scored)
        assert _compare(there).passed


def test_windows_follow_each_layer_to_its_device() -> None:
    here, asked = windowed("gemma3_text"), tiny_families.tiny.example(2, images=0, answer=False)
    learned = example(here, 1)
    with TwoDevices():
        there = over_two_devices(windowed("gemma3_text"))
        outputs = []
        for backbone in (here, there):
            with attached(backbone, injected(backbone, [learned], "window")):
                outputs.append(answered(backbone, inputs_of(backbone, [asked]))[0].cpu())
        assert torch.equal(*outputs)


@pytest.mark.parametrize("retrieval", ["in_flight", "two_pass"])
@pytest.mark.parametrize("family", ["llava", "llama"])
def test_a_model_with_its_memory_reads_it_over_two_devices(family: str, retrieval: str) -> None:
    """Plain `generate` while attached, and answers with their sources."""
    here, outputs = tiny_families.model(family), []
    asked = examples(here)[1]
    inputs = inputs_of(here, asked)
    with TwoDevices():
        there = over_two_devices(tiny_families.MODELS[family]())
        for backbone in (here, there):
            model = taught(backbone, retrieval=retrieval)
            with model.attached():
                outputs.append((answered(backbone, inputs)[0].cpu(), model.answer_all(asked, max_new_tokens=2)))
        assert torch.equal(outputs[0][0], outputs[1][0]) and outputs[0][1] == outputs[1][1]


def test_layers_of_a_prefilled_cache_lie_where_the_model_has_its_own() -> None:
    here, outputs = tiny_families.model("llama"), []
    learned, asked = examples(here)
    with TwoDevices():
        for backbone in (here, over_two_devices(tiny_families.MODELS["llama"]())):
            cache, kwargs = as_cache(backbone, memory_of(backbone, learned), inputs_of(backbone, asked))
            devices = [layer.keys.device.type for layer in cache.layers]
            outputs.append(answered(backbone, kwargs, past_key_values=cache)[0].cpu())
        assert torch.equal(*outputs) and devices == ["cpu", FAR, FAR]
