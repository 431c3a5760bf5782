"""Whatever goes wrong, at whatever stage: a clear message, and nothing left on the model."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama.modeling_llama import LlamaAttention

import tiny
import tiny_families
from inducekv.attention import InFlight, attached
from inducekv.backbone import Backbone
from inducekv.families import family_of
from inducekv.injection import Injection
from inducekv.memory import KVMemory
from inducekv.memory_file import FingerprintError
from inducekv.model import InducedModel
from test_attention import parameters_of, trace
from test_family_parity import answered, example
from test_in_flight import taught
from test_parity import inputs_of, memory_of

FAMILIES = ["llava", "qwen2_5_vl", "gemma3", "idefics3"]
CHANGED = torch.tensor([[3]])


@contextmanager
def untouched(backbone: Backbone, state_too: bool = False) -> Iterator[dict[str, Tensor]]:
    """Gives inputs; afterwards the model has every attribute, hook, implementation and number that it had.

    `state_too`: and what it remembers between calls, which a pass of the user's own changes.
    """
    inputs = inputs_of(backbone, [example(backbone, seed, False) for seed in (2, 5)])
    plain = answered(backbone, inputs)[0]
    for path in backbone.family.state:
        setattr(backbone.model.model, path.rpartition(".")[2], CHANGED)  # e.g. Qwen-VL's rope_deltas
    before, weights = trace(backbone.model), parameters_of(backbone.model)
    after_hooks = [list(module._forward_hooks) for module in backbone.model.modules()]
    yield inputs
    if state_too:
        assert all(getattr(backbone.model.model, path.rpartition(".")[2]) is CHANGED for path in backbone.family.state)
    assert trace(backbone.model) == before
    assert [list(module._forward_hooks) for module in backbone.model.modules()] == after_hooks
    assert all(map(torch.equal, parameters_of(backbone.model), weights))
    assert torch.equal(answered(backbone, inputs)[0], plain), "detached outputs are bit-identical"


class Wrong(Exception):
    pass


def fail(*args: Any, **kwargs: Any) -> None:
    raise Wrong


def in_the_provider(backbone: Backbone, inputs: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    with attached(backbone, fail):
        answered(backbone, inputs)


def in_flight(backbone: Backbone, inputs: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    with attached(backbone, InFlight(1, fail)):
        answered(backbone, inputs)


def in_the_block(backbone: Backbone, inputs: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    with attached(backbone, memory_of(backbone, [[example(backbone, 1)]] * 2)):
        fail()


def in_a_nested_block(backbone: Backbone, inputs: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    injection = memory_of(backbone, [[example(backbone, 1)]] * 2)
    with attached(backbone, lambda inputs: injection), attached(backbone, injection), attached(backbone, None):
        fail()


def in_a_layer(backbone: Backbone, inputs: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    """Of the pass that reads the prompt, with the memory looked up by a pass of its own."""
    model = taught(backbone, retrieval="two_pass")
    with model.attached():
        patch.setattr(backbone.text_model.layers[-1].mlp, "forward", fail)
        answered(backbone, inputs)


def between_tokens(backbone: Backbone, inputs: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    """In the middle of `generate`, after the first token."""
    seen: list[int] = []

    def stop(ids: Tensor, scores: Tensor) -> Tensor:
        seen.append(1)
        return fail() if len(seen) > 1 else scores  # type: ignore[return-value]

    with taught(backbone).attached():
        answered(backbone, inputs, logits_processor=[stop])


def while_encoding(backbone: Backbone, inputs: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    patch.setattr(backbone.text_model.layers[-1].mlp, "forward", fail)
    backbone.encode([example(backbone, 1)])


def while_scoring(backbone: Backbone, inputs: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    injection = memory_of(backbone, [[example(backbone, 1)]])
    patch.setattr(backbone.text_model.norm, "forward", fail)
    backbone.score([example(backbone, 2)], injection)


def while_answering(backbone: Backbone, inputs: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    model = taught(backbone)
    patch.setattr(backbone.text_model.norm, "forward", fail)
    model.answer_all([example(backbone, 2, False)])


def while_making_a_cache(backbone: Backbone, inputs: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    model = taught(backbone, retrieval="two_pass", weighting="none")
    patch.setattr(backbone.text_model.layers[0].mlp, "forward", fail)
    model.as_cache(inputs)


def while_checking(backbone: Backbone, inputs: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    patch.setattr("inducekv.check._CHECKED", {})
    patch.setattr(backbone.text_model.norm, "forward", fail)
    with attached(backbone, None, check=True):
        pass


def while_asking_for_the_softcap(backbone: Backbone, inputs: dict[str, Any], patch: pytest.MonkeyPatch) -> None:
    patch.setattr(backbone.text_model.config, "final_logit_softcapping", 3.0, raising=False)
    patch.delitem(backbone.__dict__, "softcap", raising=False)
    patch.setattr(backbone.text_model.norm, "forward", fail)
    _ = backbone.softcap


STAGES = [
    in_the_provider,
    in_flight,
    in_the_block,
    in_a_nested_block,
    in_a_layer,
    between_tokens,
    while_encoding,
    while_scoring,
    while_answering,
    while_making_a_cache,
    while_checking,
    while_asking_for_the_softcap,
]


@pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.__name__.replace("_", " "))
@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_left_when_something_goes_wrong(family: str, stage: Callable[..., None]) -> None:
    backbone = tiny_families.model(family)
    ours = stage.__name__.startswith("while")
    with untouched(backbone, ours) as inputs, pytest.MonkeyPatch.context() as patch, pytest.raises(Wrong):
        stage(backbone, inputs, patch)
    for path in backbone.family.state:
        setattr(backbone.model.model, path.rpartition(".")[2], None)


def changed(injection: Injection, **fields: Callable[[Tensor], Tensor]) -> Injection:
    return replace(
        injection, **{name: [change(x) for x in getattr(injection, name)] for name, change in fields.items()}
    )


def nan(x: Tensor) -> Tensor:
    x = x.clone()
    x[0, 0, 0, 0] = torch.nan
    return x


def both(change: Callable[[Tensor], Tensor]) -> Callable[[Injection], Injection]:
    """jaxtyping, on in tests only, refuses keys and values that differ in shape."""
    return lambda injection: changed(injection, keys=change, values=change)


MISFITS: dict[str, tuple[Callable[[Injection], Injection], str]] = {
    "a layer too few": (
        lambda x: replace(x, keys=x.keys[1:], values=x.values[1:]),
        r"keys of 2 and values of 2 layers, for layers \[0, 1, 2\] of a model that has 3",
    ),
    "fewer values than keys": (lambda x: replace(x, values=x.values[1:]), "keys of 3 and values of 2 layers"),
    "layers that the model lacks": (
        lambda x: replace(x, layers=(1, 2, 3)),
        r"layers \[1, 2, 3\] of a model that has 3",
    ),
    "other heads": (both(lambda k: k[:, :1]), r"keys of layer 0 .*\[1, 1, \d+, 16\].*kv_heads.*\[2, \d+, 16\]"),
    "other head dimension": (both(lambda k: k[..., :8]), r"\[1, 2, \d+, 8\].*; attach it to the model it was made for"),
    "tokens that the mask lacks": (both(lambda k: k[:, :, 1:]), "keys of layer 0 .*mask ask for"),
    "rows that the mask lacks": (both(lambda k: k.repeat(2, 1, 1, 1)), r"\[2, 2, \d+, 16\].*ask for 1 x"),
    "keys that are no numbers": (lambda x: changed(x, keys=nan), r"not finite numbers in torch\.float64"),
    "values without end": (lambda x: changed(x, values=lambda v: v / 0), "not finite numbers"),
}


@pytest.mark.parametrize("provided", [False, True], ids=["given", "provided"])
@pytest.mark.parametrize("misfit", MISFITS)
def test_memories_that_do_not_fit_are_refused(misfit: str, provided: bool, llava: Backbone) -> None:
    change, message = MISFITS[misfit]
    injection = change(memory_of(llava, [[tiny.example(1)]]))
    with untouched(llava) as inputs:
        reached = False
        memory = (lambda inputs: injection) if provided else injection
        with pytest.raises(ValueError, match=message), attached(llava, memory):
            reached = True
            llava.model(**{name: x[:1] for name, x in inputs.items()})
        assert reached == provided, "a memory that is given is refused when attaching"


@pytest.mark.parametrize("shared", [False, True], ids=["own pieces", "shared pieces"])
def test_numbers_too_large_for_half_precision_are_refused(shared: bool) -> None:
    """A memory learned in bfloat16 may hold what float16 cannot."""
    backbone = tiny.llava(torch.float16)
    large = changed(memory_of(tiny.llava(torch.float32), [[tiny.example(1)]] * (1 + shared)), values=lambda v: v * 1e6)
    injection = changed(large, keys=lambda k: k.half(), values=lambda v: v.half())
    with pytest.raises(ValueError, match="float16, load it in bfloat16"), attached(backbone, injection):
        pass


def test_rows_that_disagree_are_refused(llava: Backbone) -> None:
    for memory in (memory_of(llava, [[tiny.example(1)]] * 3), lambda inputs: memory_of(llava, [[tiny.example(1)]] * 3)):
        with (
            untouched(llava) as inputs,
            pytest.raises(ValueError, match="for 3 rows, the batch has 2"),
            attached(llava, memory),
        ):
            answered(llava, inputs)


@pytest.mark.parametrize("retrieval", ["in_flight", "two_pass"])
def test_prompts_longer_than_the_context_without_the_memory_are_refused(retrieval: str, llava: Backbone) -> None:
    model = taught(llava, retrieval=retrieval)
    config = llava.text_model.config
    with untouched(llava) as inputs:
        tokens = inputs["input_ids"].shape[1]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(config, "max_position_embeddings", tokens + 5)
            message = rf"prompt has {tokens} tokens .* more than the {tokens + 5} that the model's context holds"
            with pytest.raises(ValueError, match=message), model.attached():
                answered(llava, inputs)


def test_memories_of_other_models_are_refused(llava: Backbone, qwen: Backbone, tmp_path: Path) -> None:
    foreign = taught(qwen).memory
    with untouched(llava):
        with pytest.raises(FingerprintError, match="made for another model"):
            InducedModel.from_pretrained(llava, memory=foreign)
        with pytest.raises(FingerprintError, match="made for another model"), taught(llava).attached(foreign):
            pass
        foreign.save_pretrained(tmp_path)
        with pytest.raises(FingerprintError, match="made for another model"):
            KVMemory.from_pretrained(tmp_path, llava)


class OwnAttention(LlamaAttention):
    """As models with code of their own have it: right, but deaf to the attention interface."""

    def forward(self, hidden_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, None]:
        shape = (*hidden_states.shape[:2], -1, self.head_dim)
        query, key, value = (
            project(hidden_states).view(shape).transpose(1, 2) for project in (self.q_proj, self.k_proj, self.v_proj)
        )
        out = nn.functional.scaled_dot_product_attention(query, key, value, is_causal=True, enable_gqa=True)
        return self.o_proj(out.transpose(1, 2).flatten(2)), None


class CallsTheLibrary(LlamaAttention):
    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return super().forward(*args, **kwargs)


def test_attention_that_memory_cannot_join_is_refused() -> None:
    model = LlamaForCausalLM(LlamaConfig(**tiny_families.TEXT))
    layer = model.model.layers[1]
    layer.self_attn = OwnAttention(model.config, 1)
    with pytest.raises(
        ValueError, match=r"OwnAttention\) does not go through the attention interface .*trust_remote_code"
    ):
        Backbone(model, tiny.TextOnly())
    layer.self_attn = CallsTheLibrary(model.config, 1)
    assert family_of(model).image_token is None


REMOTE = {"auto_map": {"AutoConfig": "remote.Config", "AutoModelForCausalLM": "remote.Model"}}


def test_code_that_comes_with_a_model_is_not_run(tmp_path: Path) -> None:
    backbone = tiny_families.model("llama")
    backbone.model.save_pretrained(tmp_path)
    backbone.processor.tokenizer.save_pretrained(tmp_path)
    (tmp_path / "remote.py").write_text("raise SystemExit('remote code ran')")
    config = tmp_path / "config.json"
    known = json.loads(config.read_text())
    with pytest.raises(ValueError, match="trust_remote_code=True is refused"):
        Backbone.from_pretrained(tmp_path, trust_remote_code=True)
    config.write_text(json.dumps({**known, **REMOTE}))
    assert isinstance(Backbone.from_pretrained(tmp_path).model, LlamaForCausalLM)
    config.write_text(json.dumps({"model_type": "made_up", **REMOTE}))
    with pytest.raises(ValueError, match=r"'made_up' .*brings its own code"):
        Backbone.from_pretrained(tmp_path)
    config.write_text(json.dumps({"model_type": "made_up"}))
    with pytest.raises(ValueError, match=r"'made_up' is not one that the installed transformers knows$"):
        Backbone.from_pretrained(tmp_path)


def test_numbers_whose_sum_overflows_are_finite_all_the_same(llava: Backbone) -> None:
    huge = changed(memory_of(llava, [[tiny.example(1)]]), values=lambda v: torch.full_like(v, 1e308))
    assert huge.values[0].sum().isinf()
    with attached(llava, huge):
        pass
