"""Half precision, and payloads stored in another dtype than the model's."""

from typing import get_args

import pytest
import torch
from torch import Tensor

import tiny_families
from inducekv.attention import attached
from inducekv.backbone import Backbone
from inducekv.config import InduceKVConfig, PayloadDtype
from inducekv.entry import Entry
from inducekv.model import InducedModel
from test_family_parity import answered, example
from test_parity import inputs_of, memory_of, one_prompt

TOLERANCE = {torch.float32: 1e-5, torch.float16: 0.01, torch.bfloat16: 0.06}
"""Largest error as a share of what the memory changes. CHOICE, two to three times what was measured."""
FAMILIES = [
    "llava",
    "qwen2_5_vl",
    "qwen3_vl",
    "idefics3",
    "gemma3",
    "mistral3",
    "internvl",
    "glm",
    "smollm3",
    "llama_yarn",
]


@torch.no_grad()
def hidden(backbone: Backbone, inputs: dict[str, Tensor]) -> Tensor:
    """What the decoder says of each row's last token: `[rows, hidden]`."""
    return backbone.text_model(**backbone.decoder_inputs(inputs), use_cache=False).last_hidden_state[:, -1].double()


def in_dtype(family: str, dtype: torch.dtype, attention: str = "sdpa") -> Backbone:
    backbone = tiny_families.MODELS[family]()
    backbone.text_model.set_attn_implementation(attention)
    return Backbone(backbone.model.to(dtype), backbone.processor)


def error(got: Tensor, expected: Tensor, without: Tensor) -> float:
    """As a share of what the memory changes."""
    return float((got - expected).norm() / (without - expected).norm())


@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_memory_reads_as_prompt_tokens(family: str, dtype: torch.dtype, attention: str) -> None:
    """In the decoder's last hidden state, rows padded on the left and one without a memory."""
    backbone = in_dtype(family, dtype, attention)
    learned, asked = example(backbone, 1), [example(backbone, seed, False) for seed in (2, 8)]
    alone = inputs_of(backbone, asked[:1])
    expected, without = hidden(backbone, one_prompt(backbone, [learned], asked[0]))[0], hidden(backbone, alone)[0]
    injection = memory_of(backbone, [[learned], []])
    assert {x.dtype for x in (*injection.keys, *injection.values)} == {dtype}
    with attached(backbone, injection):
        got = hidden(backbone, inputs_of(backbone, asked))
        assert answered(backbone, inputs_of(backbone, asked))[0].isfinite().all()
    assert error(got[0], expected, without) < TOLERANCE[dtype]
    assert error(got[1], hidden(backbone, inputs_of(backbone, asked[1:]))[0], without) < TOLERANCE[dtype]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("payload_dtype", get_args(PayloadDtype))
def test_payloads_and_models_may_differ_in_dtype(payload_dtype: PayloadDtype, dtype: torch.dtype) -> None:
    exact, coarse = tiny_families.model("llava"), in_dtype("llava", dtype)
    encoded, first = coarse.encode([example(coarse, seed) for seed in (1, 3)]), []
    without = answered(exact, inputs_of(exact, [example(exact, 2, False)]))[0][0, 0]
    for backbone, stored in ((exact, "float32"), (coarse, payload_dtype)):
        config = InduceKVConfig(budget="4MiB", payload="none", payload_dtype=stored, abstain=False)
        model = InducedModel.from_pretrained(backbone, config=config)
        layers, key_dtype = model.memory.layout.layers, model.memory.layout.key_dtype
        for i, each in enumerate(encoded):
            model.memory.add(
                Entry.of(each, id=str(i), task="t", payload_dtype=stored, layers=layers, key_dtype=key_dtype)
            )
        own = inputs_of(backbone, [example(backbone, 2, False)])
        with model.attached(record_mass=True) as attachment:
            logits, _, _ = answered(backbone, own)
        assert logits.isfinite().all() and attachment.mass.isfinite().all()
        first.append(logits[0, 0].double())
    stored_coarsely = {
        "float32": 0.0,
        "float16": 0.002,
        "bfloat16": 0.01,
        "int8": 0.03,
        "int4": 0.15,
        "int3": 0.4,
        "int2": 0.8,
        "levels4": 0.15,
        "polar4": 0.2,
        "polar3": 0.4,
    }
    assert error(first[1], first[0], without) < max(TOLERANCE[dtype], stored_coarsely[payload_dtype])
