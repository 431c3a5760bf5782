"""Compressed caches of live generations: every method, every family, every way of running it.

The reference is one plain forward pass over prompt and generated tokens, without any cache, in which the generated
tokens may not look at what the method evicted: the same positions, the same weights, none of the machinery under test.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
import tiny_families
from inducekv.attention import attached
from inducekv.backbone import Backbone
from inducekv.compression import (
    AttentionSum,
    CompressedLayer,
    KVPressScorer,
    LiveCompression,
    PrefixKV,
    RetentiveKV,
    RotateKV,
    ShiftKV,
    SphericalKV,
    WindowKV,
    cache_bytes,
)
from inducekv.examples import Example
from test_family_parity import answered, example, reference
from test_parity import TOLERANCE, inputs_of, memory_of


class KNorm:
    """Scores as kvpress's scorers do: `score(module, hidden_states, keys, values, attentions, kwargs)`."""

    def score(self, module: Any, hidden_states: Tensor, keys: Tensor, values: Tensor, *rest: Any) -> Tensor:
        assert hidden_states.shape[1] == keys.shape[2]
        return -keys.norm(dim=-1)


EVICTING: dict[str, Any] = {
    "shift_kv": lambda budget: ShiftKV(budget, proxies=64, groups=8),
    "shift_kv_unlike": lambda budget: ShiftKV(budget, proxies=64, groups=8, unlike=0.5),
    "attention_sum": AttentionSum,
    "prefix_kv": lambda budget: PrefixKV(budget=budget),
    "prefix_over_shift_kv": lambda budget: PrefixKV(ShiftKV(budget, proxies=64, groups=8)),
    "window_kv": lambda budget: WindowKV(budget, window=3, shared=1, beta=1.5, suffix=3),
    "kvpress": lambda budget: KVPressScorer(budget, scorer=KNorm()),
}
"""Methods that keep some tokens exactly as they are, by a budget."""

ANY: dict[str, Callable[[Any], LiveCompression]] = {
    **EVICTING,
    "retentive_kv": RetentiveKV,
    "retentive_kv_moments": lambda budget: RetentiveKV(budget, readout="moments"),
    "retentive_kv_elu": lambda budget: RetentiveKV(budget, readout="elu", merge="sum", relevance=0.0),
    "spherical_kv": SphericalKV,
}
"""Methods with a budget, those that change what attention gives out among them."""

FAMILIES = list(tiny_families.MODELS)


@contextmanager
def hidden_from(backbone: Backbone, kept: list[Tensor | None], prompt: int) -> Iterator[None]:
    """Tokens from place `prompt` on see only `kept` of the prompt, `[kv_heads, prompt]` for each layer."""

    def hide(module: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        seen, length = kept[module.layer_idx], kwargs["hidden_states"].shape[1]
        if seen is None or length <= prompt:  # the backbone may try out a token on its own account
            return None
        heads = backbone.text_model.config.num_attention_heads
        visible = torch.ones(heads, length, length, dtype=torch.bool)
        visible[:, prompt:, :prompt] = seen.repeat_interleave(heads // len(seen), 0)[:, None]
        mask = kwargs.get("attention_mask")
        if mask is None:
            mask = torch.ones(length, length, dtype=torch.bool).tril()[None, None]
        hidden = False if mask.dtype == torch.bool else torch.finfo(torch.float32).min
        return args, {**kwargs, "attention_mask": mask.expand(-1, heads, -1, -1).masked_fill(~visible, hidden)}

    hooks = [x.self_attn.register_forward_pre_hook(hide, with_kwargs=True) for x in backbone.text_model.layers]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def kept_of(layer: Any, row: int, real: Tensor) -> Tensor | None:
    """Which real prompt tokens a row's KV heads still have, `[kv_heads, prompt]`."""
    if not isinstance(layer, CompressedLayer):
        return None
    kept = torch.zeros(layer.positions.shape[1], real.shape[1], dtype=torch.bool)
    for head, places in enumerate(layer.positions[row].tolist()):
        kept[head, [p for p in places if p >= 0]] = True
    return kept[:, real[row].bool()]


def check(backbone: Backbone, asked: list[Example], output: Any, row: int, logits: Tensor, new: Tensor) -> None:
    """A generated row equals the reference with the same tokens hidden, and differs from the full one."""
    real = inputs_of(backbone, asked)["attention_mask"]
    each = len(output.sequences) // len(asked)
    kept = [kept_of(layer, row * each, real) for layer in output.past_key_values.layers]
    with hidden_from(backbone, kept, int(real[row].sum())):
        expected = reference(backbone, [], asked[row], new)[: len(logits)]
    assert (logits - expected).abs().max().item() < TOLERANCE
    full = reference(backbone, [], asked[row], new)[: len(logits)]
    assert (full - expected).abs().max() > 1e-2, "what was evicted must matter for this test to mean anything"


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", EVICTING)
def test_generation_goes_on_from_what_was_kept(method: str, name: str) -> None:
    """Two rows of different length, padded on the left: each as if it were alone."""
    backbone = tiny_families.model(name)
    asked = [example(backbone, 1, False), example(backbone, 4, False)]
    inputs = inputs_of(backbone, asked)
    assert bool((inputs["attention_mask"] == 0).any()), "the batch must be padded for this test to mean anything"
    _, _, whole = answered(backbone, inputs)
    with EVICTING[method](0.4)(backbone):
        logits, new, output = answered(backbone, inputs)
    assert cache_bytes(output.past_key_values) < 0.75 * cache_bytes(whole.past_key_values)
    assert output.past_key_values.get_seq_length() == whole.past_key_values.get_seq_length()
    for row in range(2):
        check(backbone, asked, output, row, logits[row], new[row])


@pytest.mark.parametrize("name", FAMILIES)
def test_a_budget_for_everything_changes_no_bit(name: str) -> None:
    """Nor does a method that is not attached any more."""
    backbone = tiny_families.model(name)
    inputs = inputs_of(backbone, [example(backbone, 1, False), example(backbone, 4, False)])
    before, _, _ = answered(backbone, inputs)
    for method in ANY.values():
        with method(1.0)(backbone):
            assert torch.equal(answered(backbone, inputs)[0], before)
    with ANY["shift_kv"](2)(backbone):
        assert not torch.equal(answered(backbone, inputs)[0], before)
    assert torch.equal(answered(backbone, inputs)[0], before)


@pytest.mark.parametrize("budget", [10_000, "1GiB"])
def test_so_does_one_in_tokens_or_bytes(budget: int | str) -> None:
    backbone = tiny_families.model("idefics3")
    inputs = inputs_of(backbone, [example(backbone, 1, False), example(backbone, 4, False)])
    before, _, _ = answered(backbone, inputs)
    for method in ANY.values():
        with method(budget)(backbone):
            assert torch.equal(answered(backbone, inputs)[0], before)


@pytest.mark.parametrize("name", FAMILIES)
def test_beams_keep_the_same_tokens_and_score_as_the_reference(name: str) -> None:
    backbone = tiny_families.model(name)
    if not tiny.PICTURES_FOLLOW_ROWS and backbone.family.image_token is not None:
        pytest.skip("this release of transformers mixes up pictures under beams")
    asked = [example(backbone, 1, False), example(backbone, 4, False)]
    real = inputs_of(backbone, asked)["attention_mask"]
    options = {"num_beams": 2, "num_return_sequences": 2, "length_penalty": 0.0}
    with EVICTING["shift_kv"](0.4)(backbone):
        _, new, output = answered(backbone, inputs_of(backbone, asked), **options)
    for i, (tokens, score) in enumerate(zip(new, output.sequences_scores, strict=True)):
        kept = [kept_of(layer, i, real.repeat_interleave(2, 0)) for layer in output.past_key_values.layers]
        with hidden_from(backbone, kept, int(real[i // 2].sum())):
            likely = reference(backbone, [], asked[i // 2], tokens)[: len(tokens)]
        likely = likely.log_softmax(-1).gather(1, tokens[:, None]).sum()
        assert likely.item() == pytest.approx(score.item(), abs=3 * TOLERANCE)


@pytest.mark.parametrize("name", [n for n in FAMILIES if tiny_families.MODELS[n] is not tiny_families.paligemma])
def test_several_pictures_in_one_prompt(name: str) -> None:
    backbone = tiny_families.model(name)
    if backbone.family.image_token is None:
        pytest.skip("a text-only family")
    asked = [tiny.example(2, images=3, answer=False)]
    with EVICTING["shift_kv"](6)(backbone):
        logits, new, output = answered(backbone, inputs_of(backbone, asked))
    check(backbone, asked, output, 0, logits[0], new[0])


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("outer", ["memory", "compression"])
def test_memory_and_compression_together(name: str, outer: str) -> None:
    """Memory stays whole beside a compressed prompt, whichever context is opened first."""
    backbone = tiny_families.model(name)
    learned, asked = example(backbone, 1, picture=False), example(backbone, 2, False)
    inputs, method = inputs_of(backbone, [asked]), EVICTING["shift_kv"](0.4)
    memory = attached(backbone, memory_of(backbone, [[learned]]))
    with memory if outer == "memory" else method(backbone), method(backbone) if outer == "memory" else memory:
        logits, new, output = answered(backbone, inputs)
    kept = [kept_of(layer, 0, inputs["attention_mask"]) for layer in output.past_key_values.layers]
    with attached(backbone, memory_of(backbone, [[learned]])):
        pass
    if backbone.family.token_types == "prefix":
        return  # its reference lays out the whole prompt in one mask of its own
    before = inputs_of(backbone, [learned], True)["input_ids"].shape[1]
    kept = [None if k is None else torch.cat([torch.ones(len(k), before, dtype=torch.bool), k], 1) for k in kept]
    with hidden_from(backbone, kept, before + inputs["input_ids"].shape[1]):
        expected = reference(backbone, [learned], asked, new[0])[: len(logits[0])]
    assert (logits[0] - expected).abs().max().item() < TOLERANCE


@pytest.mark.parametrize("window", [6, 12])
def test_sliding_layers_keep_their_window(window: int) -> None:
    backbone = tiny_families.gemma3(window)
    asked = [example(backbone, 1, False), example(backbone, 4, False)]
    with EVICTING["shift_kv"](5)(backbone):
        logits, new, output = answered(backbone, inputs_of(backbone, asked))
    for row in range(2):
        check(backbone, asked, output, row, logits[row], new[row])


def test_nothing_is_left_on_the_model() -> None:
    backbone = tiny_families.model("idefics3")
    modules = list(backbone.model.modules())
    before = [(dict(m.__dict__), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules]
    inputs = inputs_of(backbone, [example(backbone, 1, False)])
    with pytest.raises(RuntimeError, match="on purpose"), ShiftKV(3)(backbone):
        backbone.model.generate(**inputs, max_new_tokens=2)
        raise RuntimeError("on purpose")
    after = [(dict(m.__dict__), len(m._forward_hooks), len(m._forward_pre_hooks)) for m in modules]
    assert [x[1:] for x in after] == [x[1:] for x in before]
    assert [x[0].keys() for x in after] == [x[0].keys() for x in before]


def test_a_model_may_be_given_without_its_processor_and_contexts_do_not_nest() -> None:
    backbone = tiny_families.model("llava")
    with ShiftKV(3)(backbone.model), pytest.raises(ValueError, match="compresses this model already"):
        ShiftKV(3)(backbone).__enter__()


def test_a_batch_padded_on_the_right_is_refused() -> None:
    backbone = tiny_families.model("llama")
    inputs = inputs_of(backbone, [example(backbone, 1, False), example(backbone, 4, False)])
    right = {name: x.flip(1) for name, x in inputs.items()}
    with ShiftKV(3)(backbone), pytest.raises(ValueError, match="padded on the left"):
        backbone.model(**right, use_cache=True)


def test_a_static_cache_is_refused() -> None:
    backbone = tiny_families.model("llama")
    inputs = inputs_of(backbone, [example(backbone, 1, False)])
    with ShiftKV(3)(backbone), pytest.raises(ValueError, match="dynamic cache"):
        answered(backbone, inputs, cache_implementation="static", disable_compile=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_prompts_own_attention_is_what_the_model_computed(name: str) -> None:
    """Queries made again from hidden states are the model's own, in every family: norms, biases, rotary embedding."""
    backbone = tiny_families.model(name)
    inputs = inputs_of(backbone, [example(backbone, 1, False)])
    length = inputs["input_ids"].shape[1]
    if backbone.family.token_types is not None:
        length = 1  # pictures or prompts see themselves in both directions: only the last query is causal
    seen: list[Tensor] = []

    class Probe(ShiftKV):
        def measure(self, prompt: Any) -> Tensor:
            seen.append(prompt.attention(prompt.tokens - length, prompt.tokens))
            return super().measure(prompt)

    weights: list[Tensor] = []
    before = backbone.text_model.config._attn_implementation
    backbone.text_model.set_attn_implementation("eager")
    hooks = [
        x.self_attn.register_forward_hook(lambda m, a, o: weights.append(o[1])) for x in backbone.text_model.layers
    ]
    try:
        with Probe(3, proxies=8, groups=2)(backbone), torch.no_grad():
            backbone.model(**inputs, use_cache=True)
    finally:
        for hook in hooks:
            hook.remove()
        backbone.text_model.set_attn_implementation(before)
    for got, expected in zip(seen, weights, strict=True):
        assert float((got - expected[:, :, -length:]).abs().max()) < 1e-5


@pytest.mark.parametrize("method", ANY)
@pytest.mark.parametrize("tokens", [1, 2])
def test_prompts_of_hardly_any_tokens(method: str, tokens: int) -> None:
    backbone = tiny_families.model("llama")
    ids = torch.tensor([[tiny.BOS, 40][:tokens]])
    with ANY[method](1)(backbone):
        logits, _, output = answered(backbone, {"input_ids": ids, "attention_mask": torch.ones_like(ids)})
    assert torch.isfinite(logits).all()
    assert output.past_key_values.get_seq_length() == tokens + 2
    assert not isinstance(output.past_key_values.layers[0], CompressedLayer) or tokens > 1


@pytest.mark.parametrize("method", ANY)
def test_a_prompt_of_pictures_only(method: str) -> None:
    backbone = tiny_families.model("llava")
    inputs = inputs_of(backbone, [tiny.example(2, images=3, answer=False)])
    pictures = inputs["input_ids"] == tiny.IMAGE
    inputs["input_ids"] = inputs["input_ids"][pictures][None]
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    with ANY[method](0.5)(backbone):
        logits, _, output = answered(backbone, inputs)
    assert torch.isfinite(logits).all()
    assert isinstance(output.past_key_values.layers[-1], CompressedLayer)


@pytest.mark.parametrize("name", FAMILIES)
def test_eight_bits_change_hardly_anything_and_two_bits_take_less(name: str) -> None:
    """Keys go through rotary embedding backwards, rotation, order of channels and codes, and come back."""
    backbone = tiny_families.model(name)
    inputs = inputs_of(backbone, [example(backbone, 1, False), example(backbone, 4, False)])
    before, _, whole = answered(backbone, inputs)
    sizes = []
    for bits, error in ((8, 0.2), (2, 100.0)):
        with RotateKV(bits=bits, sinks=2)(backbone):
            got, _, output = answered(backbone, inputs)
        assert 0 < (got - before)[:, :2].abs().max() < error
        assert torch.equal(got[:, 0], before[:, 0]), "the prompt itself is read before it is quantised"
        sizes.append(cache_bytes(output.past_key_values))
    assert sizes[1] < sizes[0] < cache_bytes(whole.past_key_values)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("method", ["retentive_kv", "retentive_kv_moments", "spherical_kv"])
def test_states_and_codes_do_better_than_plain_eviction(method: str, name: str) -> None:
    """The next token's logits come nearer to the full cache's, in rows of different length; beams run, too."""
    backbone = tiny_families.model(name)
    asked = [example(backbone, 1, False), example(backbone, 4, False)]
    inputs, errors = inputs_of(backbone, asked), []
    before, tokens, _ = answered(backbone, inputs)
    for compression in (ANY[method](6), RetentiveKV(6, readout="none")):
        with compression(backbone):
            got, new, _ = answered(backbone, inputs)
        errors.append((got - before)[:, 1][new[:, 0] == tokens[:, 0]].square().mean())
        with compression(backbone):
            beams, _, _ = answered(backbone, inputs, num_beams=2)
        assert torch.isfinite(got).all() and torch.isfinite(beams).all()
    assert errors[0] < errors[1]


@pytest.mark.parametrize(
    "method", ["retentive_kv", "retentive_kv_moments", "retentive_kv_elu", "spherical_kv", "shift_kv_unlike"]
)
def test_padding_changes_nothing(method: str) -> None:
    """A row of a padded batch gets the logits it gets alone."""
    backbone = tiny_families.model("idefics3")
    asked = [example(backbone, 1, False), example(backbone, 4, False)]
    with ANY[method](0.5)(backbone):
        both, new, _ = answered(backbone, inputs_of(backbone, asked))
        for row in range(2):
            alone, tokens, _ = answered(backbone, inputs_of(backbone, asked[row : row + 1]))
            assert torch.equal(tokens[0], new[row])
            assert (alone[0] - both[row]).abs().max() < 1e-4


@pytest.mark.parametrize("method", ANY)
def test_a_budget_in_bytes_is_respected(method: str) -> None:
    backbone = tiny_families.model("idefics3")
    inputs = inputs_of(backbone, [tiny.example(2, images=3, answer=False)])
    with torch.no_grad():
        full = cache_bytes(backbone.model(**inputs, use_cache=True).past_key_values)
        for share in (0.7, 0.9):
            budget = int(full * share)
            with ANY[method](f"{budget}B")(backbone):
                taken = cache_bytes(backbone.model(**inputs, use_cache=True).past_key_values)
            assert 0 < taken <= budget


def test_layers_of_a_group_keep_the_same_windows() -> None:
    backbone = tiny_families.model("idefics3")
    inputs = inputs_of(backbone, [tiny.example(2, images=3, answer=False)])
    with WindowKV(0.5, window=4, shared=2, beta=4.0, suffix=3)(backbone):
        _, _, output = answered(backbone, inputs)
    first, *others = [layer.positions for layer in output.past_key_values.layers]
    assert torch.equal(others[0], others[1]) and first.shape[-1] > others[0].shape[-1]
    assert torch.equal(first[:, :1].expand_as(first), first)


def test_a_compressed_cache_forgets_new_tokens_but_not_the_prompt() -> None:
    backbone = tiny_families.model("llama")
    inputs = inputs_of(backbone, [example(backbone, 1, False)])
    with ShiftKV(4)(backbone):
        _, _, output = answered(backbone, inputs)
    cache = output.past_key_values
    before = cache.get_seq_length()
    cache.crop(-1)
    assert cache.get_seq_length() == before - 1 and cache.layers[0].keys.shape[2] == 4 + 1
    with pytest.raises(ValueError, match="can forget the 1 tokens"):
        cache.crop(-5)
