"""Retrieval keys: which tokens count, how the two parts weigh, and what is refused."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn.functional import normalize

import tiny_families
from inducekv.backbone import Backbone
from inducekv.model import InducedModel
from inducekv.retrieval_key import key_dim, retrieval_key, text_mean
from test_family_parity import example
from test_parity import inputs_of


@pytest.fixture(scope="module")
def llava() -> Backbone:
    return tiny_families.model("llava")


@pytest.mark.parametrize("family", ["llava", "idefics3", "qwen2_5_vl", "gemma3", "llama"])
def test_both_parts_have_unit_norm_and_count_alike(family: str) -> None:
    backbone = tiny_families.model(family)
    asked = [example(backbone, seed, False) for seed in (2, 5, 8)]
    last, both = backbone.query_keys(asked, key_pool="last"), backbone.query_keys(asked, key_pool="last_and_text")
    hidden = backbone.hidden_size
    assert both.shape == (3, key_dim(hidden, "last_and_text")) and last.shape == (3, key_dim(hidden, "last"))
    assert torch.allclose(both[:, :hidden] * math.sqrt(2), last, atol=1e-6)
    assert torch.allclose(both[:, hidden:].norm(dim=-1), torch.tensor(1 / math.sqrt(2)), atol=1e-6)


def test_the_text_part_is_the_mean_embedding_of_the_words(llava: Backbone) -> None:
    asked = example(llava, 2, False)
    inputs = inputs_of(llava, [asked])
    special = set(llava.processor.tokenizer.all_special_ids) | {llava.model.config.image_token_id}
    words = [token for token in inputs["input_ids"][0].tolist() if token not in special]
    assert 0 < len(words) < inputs["input_ids"].shape[1]
    expected = normalize(llava.model.get_input_embeddings()(torch.tensor(words)).mean(0), dim=-1)
    got = llava.query_keys([asked])[0, llava.hidden_size :] * math.sqrt(2)
    assert torch.allclose(got, expected.detach().float(), atol=1e-6)


def test_pictures_and_answers_do_not_move_the_text_part_and_words_do(llava: Backbone) -> None:
    one, other = example(llava, 2), example(llava, 5)
    same_words = replace(one, images=other.images, id="same words")
    keys = [llava.encode([e])[0].key[llava.hidden_size :] for e in (one, same_words, replace(one, answer="no"))]
    assert torch.allclose(keys[0], keys[1], atol=1e-6) and torch.allclose(keys[0], keys[2], atol=1e-6)
    reworded = replace(one, question=one.question + " now", id="reworded")
    assert not torch.allclose(llava.encode([reworded])[0].key[llava.hidden_size :], keys[0], atol=1e-3)


def test_a_prompt_without_words_has_an_empty_text_part_and_no_missing_numbers(llava: Backbone) -> None:
    ids = torch.full((1, 3), llava.model.config.image_token_id)
    prefix = torch.ones(1, 3, dtype=torch.bool)
    assert text_mean(llava, ids, prefix).eq(0).all()
    key = retrieval_key(llava, torch.randn(1, 3, llava.hidden_size), "last_and_text", prefix, ids)
    assert key.isfinite().all() and key[0, llava.hidden_size :].eq(0).all()


@pytest.mark.parametrize("retrieval", ["in_flight", "two_pass"])
def test_embeddings_without_token_ids_are_refused_and_say_what_to_do(llava: Backbone, retrieval: str) -> None:
    model = InducedModel.from_pretrained(
        llava, config={"budget": "4MiB", "retrieval": retrieval, "selector": "herding"}
    )
    model.learn([example(llava, seed) for seed in (1, 4)], task="things")
    inputs = inputs_of(llava, [example(llava, 2, False, picture=False)])
    embeds = llava.model.get_input_embeddings()(inputs["input_ids"])
    with model.attached(), pytest.raises(ValueError, match="give input_ids, or learn the memory with key_pool='last'"):
        llava.model.generate(inputs_embeds=embeds, attention_mask=inputs["attention_mask"], max_new_tokens=2)
