"""Quantised backbones: memory as keys and values reads as prompt tokens do on the same quantised model."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, BitsAndBytesConfig, TorchAoConfig

import tiny
from inducekv import check
from inducekv.attention import attached
from inducekv.backbone import Backbone
from inducekv.check import check_parity
from inducekv.devices import quantisation
from test_attention import trace
from test_family_parity import example
from test_parity import inputs_of, memory_of, one_prompt


def torchao(name: str) -> TorchAoConfig:
    return TorchAoConfig(getattr(pytest.importorskip("torchao.quantization"), name)())


def bitsandbytes(**options: Any) -> BitsAndBytesConfig:
    pytest.importorskip("bitsandbytes")
    return BitsAndBytesConfig(**options)


METHODS: dict[str, tuple[Callable[[], Any], Callable[..., Backbone], float]] = {
    "torchao int8": (lambda: torchao("Int8WeightOnlyConfig"), tiny.llava, 1e-4),
    "torchao int8, activations too": (lambda: torchao("Int8DynamicActivationInt8WeightConfig"), tiny.llava, 0.1),
    "bitsandbytes int8": (lambda: bitsandbytes(load_in_8bit=True), tiny.llava, 0.1),
    "bitsandbytes nf4": (lambda: bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4"), tiny.llama, 1e-2),
}
"""Configuration, model, and the largest error as a share of what the memory changes: rounding that depends on the other
tokens of a batch (activations) is not the same with the memory in the prompt."""


@pytest.fixture(autouse=True)
def _nothing_checked_yet(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(check, "_CHECKED", {})
    yield


def quantised(plain: Backbone, config: Any, folder: Path) -> Backbone:
    plain.model.save_pretrained(folder)
    auto = AutoModelForCausalLM if plain.family.image_token is None else AutoModelForImageTextToText
    model = auto.from_pretrained(folder, quantization_config=config, dtype=torch.float32, device_map="cpu")
    return Backbone(model, plain.processor)


@torch.no_grad()
def logits(backbone: Backbone, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
    return backbone.model(**inputs).logits[0, -1]


@pytest.mark.parametrize("method", METHODS)
def test_memory_reads_as_prompt_tokens_of_the_same_quantised_model(method: str, tmp_path: Path) -> None:
    config, build, tolerance = METHODS[method]
    plain = build(torch.float32)
    backbone = quantised(plain, config(), tmp_path)
    assert quantisation(plain.model) is None and quantisation(backbone.model) is not None
    learned, asked = example(backbone, 1), example(backbone, 2, False)
    inputs = inputs_of(backbone, [asked])
    without, expected = logits(backbone, inputs), logits(backbone, one_prompt(backbone, [learned], asked))
    assert not torch.equal(expected, logits(plain, one_prompt(plain, [learned], asked))), "nothing was quantised"
    before, injection = trace(backbone.model), memory_of(backbone, [[learned]])
    with attached(backbone, injection):
        got = logits(backbone, inputs)
    assert (got - expected).norm() < tolerance * (without - expected).norm()
    assert torch.equal(logits(backbone, inputs), without) and trace(backbone.model) == before
    assert check_parity(backbone).passed
    assert backbone.fingerprint() == plain.fingerprint(), "its memories are the plain model's"
    scored = [x.score([example(plain, 2)], injection).nll.item() for x in (plain, backbone)]
    assert scored[1] == pytest.approx(scored[0], rel=0.1)
    assert len(backbone.generate([asked], injection, max_new_tokens=3)) == 1 and backbone.softcap is None


def test_outcomes_of_the_check_are_kept_for_each_way_of_quantising(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared, compare, plain = [], check._compare, tiny.llama(torch.float32)
    monkeypatch.setattr(check, "_compare", lambda backbone: compared.append(backbone) or compare(backbone))
    ways = [torchao(name) for name in ("Int8WeightOnlyConfig", "Int8DynamicActivationInt8WeightConfig")]
    for backbone in (plain, *[quantised(plain, way, tmp_path) for way in ways]):
        check_parity(backbone)
        check_parity(backbone)
    assert len(compared) == 3
