"""Where a prompt begins: memory is looked up for each, once, and what follows reads the same entries or is refused."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

import tiny
import tiny_families
from inducekv import calls
from inducekv.attention import attached
from inducekv.backbone import Backbone
from inducekv.cache_name import CACHE, cache_of
from inducekv.compression import RetentiveKV, RotateKV, ShiftKV, SphericalKV, WindowKV
from inducekv.examples import Example
from test_attention import trace
from test_in_flight import taught
from test_parity import inputs_of

RETRIEVAL = ["two_pass", "in_flight"]
GREEDY = {"max_new_tokens": 8, "min_new_tokens": 8, "do_sample": False}
METHODS: dict[str, Callable[[], Any]] = {
    "ShiftKV": lambda: ShiftKV(4, proxies=64, groups=8),
    "WindowKV": lambda: WindowKV(0.4, window=3, shared=1, beta=1.5, suffix=3),
    "RotateKV": lambda: RotateKV(ShiftKV(6, proxies=64, groups=8), bits=4),
    "RetentiveKV": lambda: RetentiveKV(4),
    "SphericalKV": lambda: SphericalKV(0.3),
}


def question(backbone: Backbone, text: str, seed: int = 1) -> dict[str, Any]:
    pictures = () if backbone.image_token is None else (tiny.picture(seed),)
    return inputs_of(backbone, [Example(text, None, pictures)])


def followed_by(inputs: dict[str, Any], tokens: list[int]) -> dict[str, Any]:
    ids = torch.cat([inputs["input_ids"], torch.tensor([tokens])], 1)
    made = {**inputs, "input_ids": ids, "attention_mask": torch.ones_like(ids)}
    if "mm_token_type_ids" in inputs:
        made["mm_token_type_ids"] = (ids == tiny.IMAGE).int()
    return made


@torch.no_grad()
@pytest.mark.parametrize("retrieval", RETRIEVAL)
@pytest.mark.parametrize("use_cache", [False, True])
def test_passes_that_begin_alike_are_prompts_of_their_own(llava: Backbone, retrieval: str, use_cache: bool) -> None:
    """Other pictures behind the same ids; a longer prompt after a shorter one, of the same picture or another."""
    model = taught(llava, retrieval=retrieval)
    prompts = [question(llava, "what is", 1), question(llava, "what is", 2)]
    prompts += [followed_by(prompt, [50, 51]) for prompt in prompts]

    def logits(prompt: dict[str, Any]) -> Tensor:
        return llava.model(**prompt, use_cache=use_cache).logits[:, -1]

    alone = []
    for prompt in prompts:
        with model.attached():
            alone.append(logits(prompt))
    with model.attached():
        assert all(torch.equal(logits(prompt), expected) for prompt, expected in zip(prompts, alone, strict=True))
    assert (alone[2] - alone[3]).abs().max() > 1e-3


@pytest.mark.parametrize("retrieval", RETRIEVAL)
@pytest.mark.parametrize("options", [{}, {"use_cache": False}, {"num_beams": 2, "use_cache": False}], ids=str)
def test_each_generation_looks_up_once(llava: Backbone, retrieval: str, options: dict[str, Any]) -> None:
    model = taught(llava, retrieval=retrieval)
    first, second = question(llava, "what is", 1), followed_by(question(llava, "what is", 2), [50, 51])
    with model.attached():
        llava.model.generate(**first, **GREEDY, **options)
        after = llava.model.generate(**second, **GREEDY, **options)
    with model.attached() as attachment:
        assert torch.equal(llava.model.generate(**second, **GREEDY, **options), after)
    with model.attached():
        cached = llava.model.generate(**second, **GREEDY, **{**options, "use_cache": True})
    assert attachment.injection is not None and torch.equal(cached, after)


@pytest.mark.parametrize("retrieval", RETRIEVAL)
@pytest.mark.parametrize("family", ["llama", "llava", "qwen2_5_vl"])
def test_a_kept_cache_is_not_taken_for_a_prompt_that_was_looked_up(family: str, retrieval: str) -> None:
    backbone = tiny_families.model(family)
    model, inputs = taught(backbone, retrieval=retrieval), question(backbone, "what is")
    before = trace(backbone.model)
    with model.attached():
        out = backbone.model.generate(**inputs, **GREEDY, return_dict_in_generate=True)
        ids = torch.cat([out.sequences, torch.tensor([[40, 41, 42]])], 1)
        again = {"input_ids": ids, "attention_mask": torch.ones_like(ids), CACHE: cache_of(out)}
        with pytest.raises(ValueError, match=r"generate was given a cache that holds \d+ tokens already"):
            backbone.model.generate(**again, **GREEDY)
    with pytest.raises(ValueError, match="give the whole conversation without the cache"), model.attached():
        backbone.model.generate(**again, **GREEDY)
    with pytest.raises(ValueError, match="were not read in this context"), model.attached(), torch.no_grad():
        backbone.model(input_ids=ids[:, -1:], **{CACHE: cache_of(out)})
    assert trace(backbone.model) == before


@torch.no_grad()
@pytest.mark.parametrize("retrieval", RETRIEVAL)
def test_prompts_in_pieces_are_refused(retrieval: str) -> None:
    backbone = tiny_families.model("llama")
    model, inputs = taught(backbone, retrieval=retrieval), question(backbone, "what is")
    with pytest.raises(ValueError, match=r"the first of 4.*prefill_chunk_size"), model.attached():
        backbone.model.generate(**inputs, **GREEDY, prefill_chunk_size=4)
    ids, cache = inputs["input_ids"], DynamicCache()
    with model.attached():
        backbone.model(input_ids=ids[:, :4], **{CACHE: cache}, use_cache=True)
        with pytest.raises(ValueError, match="not for pieces of one"):
            backbone.model(input_ids=ids[:, 4:], **{CACHE: cache}, use_cache=True)
    with pytest.raises(ValueError, match="a part of it was called"), model.attached():
        backbone.model.model(input_ids=ids)


def test_continuous_batching_is_refused() -> None:
    backbone = tiny_families.model("llama")
    before = trace(backbone.model)
    for context in (taught(backbone).attached(), ShiftKV(3)(backbone)):
        with pytest.raises(ValueError, match="continuous batching"), context:
            backbone.model.init_continuous_batching()
    assert trace(backbone.model) == before


@torch.no_grad()
@pytest.mark.parametrize("retrieval", RETRIEVAL)
def test_caches_of_several_prompts_may_take_turns(retrieval: str) -> None:
    """Each goes on with what its own prompt reads."""
    backbone = tiny_families.model("llama")
    model = taught(backbone, retrieval=retrieval)
    prompts = [question(backbone, "what is"), question(backbone, "who said that")]

    def step(cache: Any, token: int) -> Tensor:
        return backbone.model(input_ids=torch.tensor([[token]]), **{CACHE: cache}).logits

    alone = []
    for prompt in prompts:
        with model.attached():
            cache = cache_of(backbone.model(**prompt, use_cache=True))
            alone.append([step(cache, token) for token in (40, 41)])
    with model.attached():
        caches = [cache_of(backbone.model(**prompt, use_cache=True)) for prompt in prompts]
        mixed = [[step(cache, token) for cache in caches] for token in (40, 41)]
    for place in (0, 1):
        assert all(torch.equal(mixed[i][place], alone[place][i]) for i in (0, 1))


# -- guesses


def windowed(kind: str) -> Backbone:
    more = tiny_families.WINDOWED if kind == "gemma3_text" else {}
    return tiny_families.text_only(kind, **more, sliding_window=8)


def repeating(backbone: Backbone) -> dict[str, Any]:
    """A prompt that ends as it went on before, so that its own tokens are guessed right after it."""
    inputs = question(backbone, "what is this")
    return followed_by(inputs, [*inputs["input_ids"][0, -6:-2].tolist(), 60, 61, 62, 63, 60, 61])


def ways(backbone: Backbone, method: str) -> AbstractContextManager[Any]:
    if method in RETRIEVAL:
        return taught(backbone, retrieval=method).attached()
    return METHODS[method]()(backbone.model)


BACKBONES = {
    "llama": lambda: tiny_families.model("llama"),
    "llava": lambda: tiny_families.model("llava"),
    "qwen2_5_vl": lambda: tiny_families.model("qwen2_5_vl"),
    "mistral": lambda: windowed("mistral"),
    "gemma3_text": lambda: windowed("gemma3_text"),
}
GUESSING = [("llama", way) for way in (*RETRIEVAL, *METHODS)]
GUESSING += [(name, way) for name in BACKBONES if name != "llama" for way in ("two_pass", "in_flight", "ShiftKV")]


@pytest.mark.parametrize(("family", "way"), GUESSING)
def test_prompt_lookup_decoding_says_what_greedy_decoding_says(
    family: str, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    backbone = BACKBONES[family]()
    inputs, guessed = repeating(backbone), list[int]()
    with ways(backbone, way):
        greedy = backbone.model.generate(**inputs, **GREEDY)
    split = calls._in_two

    def noted(run: Any, kwargs: dict[str, Any], guesses: int) -> Any:
        guessed.append(guesses)
        return split(run, kwargs, guesses)

    monkeypatch.setattr(calls, "_in_two", noted)
    with ways(backbone, way):
        got = backbone.model.generate(**inputs, **GREEDY, prompt_lookup_num_tokens=3)
    assert guessed, "tokens must be guessed beside the prompt for this test to mean anything"
    assert torch.equal(got, greedy)


@pytest.mark.parametrize("way", [*RETRIEVAL, *METHODS])
def test_so_does_assisted_decoding(way: str) -> None:
    backbone = tiny_families.model("llama")
    torch.manual_seed(1)
    assistant = LlamaForCausalLM(LlamaConfig(**{**tiny.SIZES, "num_hidden_layers": 1})).double().eval()
    inputs = repeating(backbone)
    for draft in (assistant, backbone.model.__class__(backbone.model.config).double().eval()):
        with ways(backbone, way):
            greedy = backbone.model.generate(**inputs, **GREEDY)
        with ways(backbone, way):
            assert torch.equal(backbone.model.generate(**inputs, **GREEDY, assistant_model=draft), greedy)


# -- compressed caches outside their context


@torch.no_grad()
@pytest.mark.parametrize("rows", [1, 2])
@pytest.mark.parametrize("method", METHODS)
def test_a_compressed_cache_is_read_in_its_context_or_refused(method: str, rows: int) -> None:
    backbone = tiny_families.model("llama")
    inputs = inputs_of(backbone, [Example(text, None, ()) for text in ("what is", "who said that")[:rows]])
    mask = torch.nn.functional.pad(inputs["attention_mask"], (0, 1), value=1)
    step = {"attention_mask": mask, "position_ids": (mask.cumsum(-1) - 1)[:, -1:], "input_ids": mask[:, -1:] * 40}

    def prompt() -> Any:
        return cache_of(backbone.model(**inputs, use_cache=True))

    with METHODS[method]()(backbone):
        cache = prompt()
        inside = backbone.model(**step, **{CACHE: cache}).logits
    with pytest.raises(ValueError, match="go on generating inside the context"):
        backbone.model(**step, **{CACHE: cache})
    with METHODS[method]()(backbone):
        cache = prompt()
    with METHODS[method]()(backbone), attached(backbone, None):
        assert torch.equal(backbone.model(**step, **{CACHE: cache}).logits, inside), "another such context will do"
