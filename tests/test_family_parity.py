"""Every family in every way of running it: memory as keys and values equals memory as prompt tokens (float64, 1e-5).

The reference is one plain forward pass over the learned example, the question and the tokens that were generated, so
that it uses none of the machinery under test: no cache, no beams, no padding, no attached attention function.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
import tiny_families
from inducekv.attention import attached
from inducekv.backbone import Backbone
from inducekv.examples import Example
from inducekv.families import DECODERS, FAMILIES
from inducekv.scoring import capped
from test_parity import TOLERANCE, inputs_of, memory_of, one_prompt

NEW = 3


def example(backbone: Backbone, seed: int, answer: bool = True, picture: bool = True) -> Example:
    """An example with a picture, or without for text-only models; PaliGemma never goes without."""
    sees = backbone.family.image_token is not None and (picture or backbone.family.token_types == "prefix")
    return tiny.example(seed, images=int(sees), answer=answer)


def answered(backbone: Backbone, inputs: dict[str, Tensor], **options: Any) -> tuple[Tensor, Tensor, Any]:
    """Logits `[rows, new, vocabulary]`, new tokens `[rows, new]` and the whole output of `generate`."""
    output = backbone.model.generate(
        **inputs,
        max_new_tokens=NEW,
        min_new_tokens=NEW,
        do_sample=False,
        suppress_tokens=[tiny.IMAGE],
        return_dict_in_generate=True,
        output_logits=True,
        output_scores=True,
        **options,
    )
    return torch.stack(output.logits, 1), output.sequences[:, -NEW:], output


@torch.no_grad()
def reference(backbone: Backbone, learned: list[Example], asked: Example, new: Tensor) -> Tensor:
    """Logits `[new + 1, vocabulary]` of one prompt with everything in it, from the one that predicts `new[0]` on."""
    inputs = one_prompt(backbone, learned, asked)
    prompt = inputs["input_ids"].shape[1]
    inputs["input_ids"] = torch.cat([inputs["input_ids"], new[None]], 1)
    for name, value in (("attention_mask", 1), ("mm_token_type_ids", 0), ("token_type_ids", 0)):
        if name in inputs:
            inputs[name] = torch.nn.functional.pad(inputs[name], (0, len(new)), value=value)
    if backbone.family.token_types != "prefix":
        return backbone.model(**inputs).logits[0, prompt - 1 :]
    lengths = [inputs_of(backbone, [e], True)["input_ids"].shape[1] for e in learned]
    total = prompt + len(new)
    block = torch.cat([torch.full((n,), i) for i, n in enumerate([*lengths, total - sum(lengths)])])
    causal = torch.arange(total)
    prefix = (inputs["token_type_ids"][0] == 0) & (causal < prompt)
    same = block[:, None] == block[None]
    both = same & prefix[:, None] & prefix[None]  # PaliGemma's prompt sees itself in both directions
    sees = (same | (block[:, None] == len(learned))) & (causal[:, None] >= causal[None]) | both
    added = torch.zeros(total, total, dtype=backbone.dtype).masked_fill(~sees, torch.finfo(torch.float32).min)
    text_inputs = backbone.decoder_inputs(inputs) | {"attention_mask": added[None, None]}
    hidden = backbone.text_model(**text_inputs, use_cache=False).last_hidden_state
    return capped(backbone.model.lm_head(hidden[0, prompt - 1 :]), backbone.softcap)


def check(backbone: Backbone, got: Tensor, learned: list[Example], asked: Example, new: Tensor) -> None:
    expected = reference(backbone, learned, asked, new)[: len(got)]
    assert (got - expected).abs().max().item() < TOLERANCE
    if learned:
        without = reference(backbone, [], asked, new)[: len(got)]
        assert (without - expected).abs().max() > 1e-2, "the memory must matter for this test to mean anything"


def one_row(backbone: Backbone, picture: bool = False, **options: Any) -> None:
    learned, asked = example(backbone, 1, picture=picture), example(backbone, 2, False)
    with attached(backbone, memory_of(backbone, [[learned]])):
        logits, new, _ = answered(backbone, inputs_of(backbone, [asked]), **options)
    check(backbone, logits[0], [learned], asked, new[0])


def greedy(backbone: Backbone) -> None:
    one_row(backbone)


def image_in_payload(backbone: Backbone) -> None:
    one_row(backbone, picture=True)


def one_row_where_plain_models_can(backbone: Backbone, **options: Any) -> None:
    """Skipped where the installed release gets it wrong without any memory, too."""
    asked = example(backbone, 2, False)
    try:
        logits, new, _ = answered(backbone, inputs_of(backbone, [asked]), **options)
    except AttributeError as error:
        pytest.skip(f"without any memory, too, this release of transformers fails: {error}")
    if (logits[0] - reference(backbone, [], asked, new[0])[:NEW]).abs().max() > TOLERANCE:
        pytest.skip("without any memory, too, this release of transformers gives other logits")
    one_row(backbone, **options)


def static_cache(backbone: Backbone) -> None:
    one_row_where_plain_models_can(backbone, cache_implementation="static", disable_compile=True)


def no_cache(backbone: Backbone) -> None:
    one_row_where_plain_models_can(backbone, use_cache=False)


def beam(backbone: Backbone) -> None:
    """The scores of all beams are the reference's log-probabilities of their tokens."""
    learned, asked = example(backbone, 1), example(backbone, 2, False)
    options = {"num_beams": 3, "num_return_sequences": 3, "length_penalty": 0.0}
    with attached(backbone, memory_of(backbone, [[learned]])):
        _, new, output = answered(backbone, inputs_of(backbone, [asked]), **options)
    for tokens, score in zip(new, output.sequences_scores, strict=True):
        likely = reference(backbone, [learned], asked, tokens)[:NEW].log_softmax(-1)
        assert likely.gather(1, tokens[:, None]).sum().item() == pytest.approx(score.item(), abs=NEW * TOLERANCE)


def rows(backbone: Backbone, learned: list[list[Example]], asked: list[Example]) -> None:
    with attached(backbone, memory_of(backbone, learned)):
        logits, new, _ = answered(backbone, inputs_of(backbone, asked))
    for i, (entries, question) in enumerate(zip(learned, asked, strict=True)):
        check(backbone, logits[i], entries, question, new[i])


def left_padded_batch(backbone: Backbone) -> None:
    asked = [example(backbone, 2, False), example(backbone, 8, False)]
    assert len({inputs_of(backbone, [e])["input_ids"].shape[1] for e in asked}) == 2
    rows(backbone, [[example(backbone, 1)]] * 2, asked)


def ragged_memory(backbone: Backbone) -> None:
    learned = [[example(backbone, 3)], [example(backbone, 4, picture=False)], []]
    rows(backbone, learned, [example(backbone, seed, False) for seed in (2, 5, 7)])


def inputs_embeds(backbone: Backbone) -> None:
    """Embeddings of a question in words; with its picture, in one forward pass, where `generate` takes none."""
    learned = example(backbone, 1)
    asked = (
        tiny.example(2, images=0, answer=False) if backbone.family.token_types is None else example(backbone, 2, False)
    )
    inputs = inputs_of(backbone, [asked])
    mask = {"attention_mask": inputs["attention_mask"]}
    with attached(backbone, memory_of(backbone, [[learned]])):
        if backbone.family.token_types is None:
            embeds = backbone.model.get_input_embeddings()(inputs["input_ids"])
            logits, new, _ = answered(backbone, {"inputs_embeds": embeds, **mask})
        else:
            embeds, new = backbone.decoder_inputs(inputs)["inputs_embeds"], torch.empty(1, 0, dtype=torch.long)
            types = inputs["token_type_ids"]
            with torch.no_grad():
                logits = backbone.model(inputs_embeds=embeds, token_type_ids=types, **mask).logits[:, -1:]
    check(backbone, logits[0], [learned], asked, new[0])


def multi_turn(backbone: Backbone) -> None:
    """A second turn continues the first one's cache; memory still lies before both."""
    learned, asked = example(backbone, 1), example(backbone, 2, False)
    inputs = inputs_of(backbone, [asked])
    more = torch.tensor([[40, 50, 60, 70]])
    with attached(backbone, memory_of(backbone, [[learned]])):
        _, first, output = answered(backbone, inputs)
        ids = torch.cat([output.sequences, more], 1)
        again = {"input_ids": ids, "attention_mask": torch.ones_like(ids), "past_key_values": output.past_key_values}
        if "mm_token_type_ids" in inputs:
            again["mm_token_type_ids"] = torch.zeros_like(ids)
        logits, second, _ = answered(backbone, again)
    new = torch.cat([first[0], more[0], second[0]])
    expected = reference(backbone, [learned], asked, new)[NEW + 4 : -1]
    assert (logits[0] - expected).abs().max() < TOLERANCE


def gradient_checkpointing(backbone: Backbone) -> None:
    """The same logits as the reference, and the same gradients as without checkpointing."""
    learned, asked = example(backbone, 1), example(backbone, 2, False)
    inputs, injection = inputs_of(backbone, [asked]), memory_of(backbone, [[learned]])
    leaf, gradients, model = injection.values[0].requires_grad_(), [], backbone.model
    expected = reference(backbone, [learned], asked, torch.empty(0, dtype=torch.long))[0]
    try:
        for checkpointing in (False, True):
            model.train()
            if checkpointing:
                getattr(model, "activation_checkpointing_enable", model.gradient_checkpointing_enable)()
            with attached(backbone, injection):
                logits = model(**inputs, use_cache=False).logits[0, -1]
                gradients.append(torch.autograd.grad(logits.square().sum(), leaf)[0])
            assert (logits - expected).abs().max() < TOLERANCE
    finally:
        getattr(model, "activation_checkpointing_disable", model.gradient_checkpointing_disable)()
        model.eval()
    assert torch.allclose(gradients[0], gradients[1], atol=1e-10) and gradients[0].abs().max() > 0


WAYS: list[Callable[[Backbone], None]] = [
    greedy,
    beam,
    left_padded_batch,
    ragged_memory,
    image_in_payload,
    static_cache,
    inputs_embeds,
    multi_turn,
    gradient_checkpointing,
    no_cache,
]


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__.replace("_", " "))
@pytest.mark.parametrize("family", tiny_families.MODELS)
def test_memory_reads_as_prompt_tokens(family: str, way: Callable[[Backbone], None]) -> None:
    backbone = tiny_families.model(family)
    if way is image_in_payload and backbone.family.image_token is None:
        pytest.skip("a text-only model sees no pictures")
    way(backbone)


def test_every_row_of_the_tables_is_tested() -> None:
    configs = [tiny_families.model(name).model.config for name in tiny_families.MODELS]
    assert {config.model_type for config in configs} == set(FAMILIES)
    assert {config.get_text_config().model_type for config in configs} == set(DECODERS) - {"gemma"}  # as gemma2


def test_answers_are_scored_with_the_logits_that_the_model_gives_out() -> None:
    """PaliGemma 2 squashes them, in releases that do; its answers are read causally, its questions both ways."""
    backbone = tiny_families.model("paligemma")
    asked = example(backbone, 2)
    whole = inputs_of(backbone, [asked], True)
    count = int(whole["token_type_ids"].sum())
    with torch.no_grad():
        logits = backbone.model(**whole).logits[0, -count - 1 : -1].log_softmax(-1)
    expected = -logits.gather(1, whole["input_ids"][0, -count:, None])[:, 0]
    got = backbone.score([asked]).token_nll[0]
    assert (got - expected).abs().max() < TOLERANCE
