"""The preamble that all prompts share: it does not read memory, entries are stored without it, mass is on top."""

import dataclasses

import pytest
import torch
from transformers import DynamicCache

import tiny
import tiny_families as families
from inducekv import InducedModel, InduceKVConfig
from inducekv.attention import attached
from inducekv.cache_name import CACHE
from inducekv.encoded import ANSWER
from inducekv.examples import Example
from inducekv.injection import Injection
from inducekv.preamble import common_beginning, guarded, own_tokens
from inducekv.retrieval import Calibration
from inducekv.rope import shift_keys
from inducekv.selection.likelihood import LikelihoodScorer
from inducekv.selection.questions import questions_of

TOKENS, PREAMBLE, PROMPT, MASS = 5, 3, 9, 1.5


def hidden_states(backbone, ids, mask, **options):
    return backbone.text_model(input_ids=ids, attention_mask=mask, **options).last_hidden_state


@pytest.mark.parametrize("name", families.MODELS)
@torch.no_grad()
def test_guard_and_mass_equal_the_same_mask_over_prompt_tokens(name: str) -> None:
    backbone = families.model(name)
    text, total = backbone.text_model, TOKENS + PROMPT
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(9, 60, (1, total), generator=draw)
    lowest = torch.finfo(text.dtype).min
    causal = torch.full((total, total), lowest, dtype=text.dtype).triu(1)[None, None]
    reads = causal.clone()
    reads[..., TOKENS:, :TOKENS] += MASS
    reads[..., TOKENS : TOKENS + PREAMBLE, :TOKENS] = lowest
    cache = DynamicCache()
    with attached(backbone, None):
        hidden_states(backbone, ids[:, :TOKENS], causal[..., :TOKENS, :TOKENS], **{CACHE: cache}, use_cache=True)
        expected = hidden_states(backbone, ids, reads, use_cache=False)[:, TOKENS:]
        plain = hidden_states(backbone, ids[:, TOKENS:], causal[..., TOKENS:, TOKENS:], use_cache=False)
    keys, values = (
        torch.stack([getattr(layer, x)[:, :, :TOKENS] for layer in cache.layers], 1) for x in ("keys", "values")
    )
    keys = shift_keys(text, keys, torch.full((1,), -TOKENS))
    mask = torch.ones(1, TOKENS, dtype=torch.bool)
    memory = Injection(
        list(keys.unbind(1)),
        list(values.unbind(1)),
        mask,
        torch.full((1, TOKENS), MASS, dtype=text.dtype),
        torch.zeros(1, TOKENS, dtype=torch.long),
        1,
        guard=torch.tensor([PREAMBLE]),
    )
    with attached(backbone, memory):
        got = hidden_states(backbone, ids[:, TOKENS:], causal[..., TOKENS:, TOKENS:], use_cache=False)
    assert (got - expected).abs().max() < 1e-5
    assert torch.equal(got[:, :PREAMBLE], plain[:, :PREAMBLE]) or (got - plain)[:, :PREAMBLE].abs().max() < 1e-12
    assert (got - plain)[:, PREAMBLE:].abs().max() > 1e-3


def taught(backbone, **fields) -> InducedModel:
    config = InduceKVConfig(budget="1MiB", abstain=False, top_k=3, shared_preamble=True, **fields)
    model = InducedModel.from_pretrained(backbone, config=config)
    model.learn([tiny.example(i, images=0 if backbone.image_token is None else 1) for i in range(8)], task="t")
    return model


@pytest.mark.parametrize("name", ["llama", "llava", "qwen2_5_vl", "gemma3_text"])
@pytest.mark.parametrize("retrieval", ["two_pass", "in_flight"])
@torch.no_grad()
def test_keys_and_values_of_the_preamble_are_the_plain_models_bit_for_bit(name: str, retrieval: str) -> None:
    model = taught(families.model(name), retrieval=retrieval, key_layer=1, mass=2.0)
    backbone = model.backbone
    pictures = 0 if backbone.image_token is None else 1
    asked = [
        Example("why", None, tiny.example(3, images=pictures).images),
        tiny.example(4, images=pictures, answer=False),
    ]
    inputs = backbone.prepare(asked, False).batches[0].inputs
    options = {"max_new_tokens": 2, "min_new_tokens": 2, "return_dict_in_generate": True, "do_sample": False}
    plain = backbone.model.generate(**inputs, **options)
    with model.attached():
        with_memory = backbone.model.generate(**inputs, **options)
    shared, real = len(backbone.preamble), inputs["attention_mask"].bool()
    assert shared >= 2
    for row in range(2):
        first = int(real[row].long().argmax())
        for layer in range(backbone.layers):
            for part in ("keys", "values"):
                one, other = (getattr(x[CACHE].layers[layer], part)[row] for x in (plain, with_memory))
                assert torch.equal(one[:, first : first + shared], other[:, first : first + shared])
                if layer > max(1, model.memory.layers[0]):  # a layer above one that has read
                    assert not torch.equal(one[:, first + shared :], other[:, first + shared :])


@pytest.mark.parametrize("name", ["llama", "llava", "idefics3", "qwen2_5_vl"])
def test_entries_are_encoded_behind_the_preamble_and_stored_without_it(name: str) -> None:
    backbone = families.model(name)
    pictures = 0 if backbone.image_token is None else 1
    example = tiny.example(1, images=pictures)
    (whole,), (own,) = backbone.encode([example]), backbone.encode([example], shared_preamble=True)
    skipped = len(backbone.preamble)
    assert whole.tokens - own.tokens == whole.span - own.span == skipped > 0
    assert torch.equal(whole.keys[:, :, skipped:], own.keys) and torch.equal(whole.values[:, :, skipped:], own.values)
    assert torch.equal(whole.key, own.key)


@pytest.mark.parametrize("name", ["llama", "llava", "qwen2_5_vl"])
def test_an_example_behind_others_keeps_its_own_tokens_only(name: str) -> None:
    backbone = families.model(name)
    pictures = 0 if backbone.image_token is None else 1
    one, two, three = (tiny.example(i, images=pictures) for i in range(3))
    (alone,) = backbone.encode([one], shared_preamble=True)
    (behind,) = backbone.encode([one], shared_preamble=True, behind=[[two, three]])
    assert behind.tokens == alone.tokens and behind.span == alone.span
    assert torch.equal(behind.kinds, alone.kinds) and int((behind.kinds == ANSWER).sum()) == alone.answer_length
    assert (behind.values - alone.values).abs().max() > 1e-3  # it has read them
    (again,) = backbone.encode([one], shared_preamble=True, behind=[[]])
    assert torch.equal(again.keys, alone.keys)


def test_no_question_reads_an_entry_that_was_encoded_behind_it() -> None:
    from inducekv.extraction import extract
    from inducekv.memory_config import empty_memory

    backbone = families.model("llama")
    config = InduceKVConfig(budget="1MiB", neighbours=2, shared_preamble=True)
    examples = [dataclasses.replace(tiny.example(i, images=0), id=f"e{i}") for i in range(6)]
    entries, keys = extract(backbone, empty_memory(backbone, config), examples, "t", config)
    alone = backbone.query_keys([Example(e.question, None, (), e.id) for e in examples])
    for entry, key, own in zip(entries, keys, alone, strict=True):
        assert len(entry.behind) == 2 and entry.id not in entry.behind
        torch.testing.assert_close(key, own.float(), atol=1e-6, rtol=0)
    memory = empty_memory(backbone, config)
    memory.replace_all(entries)
    questions = questions_of(backbone, examples, ["t"] * len(examples), config)
    scorer = LikelihoodScorer(
        backbone,
        memory,
        memory.keys(),
        [entry.id for entry in entries],
        [entry.answer for entry in entries],
        {"current": questions},
        config,
        behind=[entry.behind for entry in entries],
    )
    closed = scorer.similarities("current") == -torch.inf
    for row, question in enumerate(questions):
        for column, entry in enumerate(entries):
            if question.entry == entry.id or question.entry in entry.behind:
                assert closed[row, column], (question.entry, entry.id)
    assert not closed.all()


def test_a_prompt_of_another_beginning_keeps_at_least_its_first_token_free() -> None:
    mask = torch.ones(2, 1, dtype=torch.bool)
    memory = Injection([], [], mask, None, torch.zeros(2, 1, dtype=torch.long), 1, guard=torch.tensor([3, 3]))
    ids = torch.tensor([[0, 7, 8, 9, 5], [0, 0, 4, 4, 4]])
    real = torch.tensor([[False, True, True, True, True], [False, False, True, True, True]])
    got = guarded(memory, ids, real, [7, 8, 9], 0)
    assert got is not None and got.guard is not None and got.guard.tolist() == [3, 1]
    assert guarded(memory, None, real, [7, 8, 9], 0) is memory


def test_own_tokens_are_neither_preamble_nor_closing() -> None:
    ids = torch.tensor([[0, 7, 8, 1, 2, 5], [7, 8, 3, 3, 3, 5]])
    prefix = torch.tensor([[False, True, True, True, True, True], [True] * 6])
    got = own_tokens(prefix, ids, [7, 8], 1)
    assert got.tolist() == [[False, False, False, True, True, False], [False, False, True, True, True, False]]
    assert torch.equal(own_tokens(prefix[:, :3], ids[:, :3], [7, 8], 1), prefix[:, :3])  # nothing left: all of it


def test_common_beginning() -> None:
    assert common_beginning([1, 2, 3], [1, 2, 4, 5], [1, 2]) == [1, 2]
    assert common_beginning([1], [2]) == []


def test_mass_zero_changes_nothing_and_mass_adds_to_the_logits() -> None:
    backbone = families.model("llama")
    model = taught(backbone)
    asked = [tiny.example(9, images=0, answer=True)]
    layers = len(model.memory.layers)
    seen = []
    for mass in (0.0, 0.0, 3.0):
        model.memory.calibration = dataclasses.replace(Calibration.identity(layers), mass=torch.tensor(mass))
        seen.append(float(model.score(asked).nll))
    assert seen[0] == seen[1] != seen[2]


def test_a_cache_that_the_preamble_would_read_is_refused() -> None:
    model = taught(families.model("llama"), weighting="none")
    inputs = dict(model.backbone.prepare([tiny.example(9, images=0, answer=False)], False).batches[0].inputs)
    with pytest.raises(ValueError, match="shared_preamble=False"):
        model.as_cache(inputs)


@pytest.mark.parametrize("anchors", [0, 128])
def test_what_entries_were_encoded_behind_is_kept_with_the_anchors_only(tmp_path, anchors: int) -> None:
    model = taught(families.model("llama"), neighbours=2, anchors=anchors)
    model.save_memory(tmp_path)
    again = InducedModel.from_pretrained(model.backbone, memory=tmp_path)
    assert len(again.training_state.behind) == (8 if anchors else 0)
    assert bool(list(tmp_path.glob("training_state*"))) == bool(anchors)
