"""Memory as keys and values equals memory as prompt tokens: the property everything else stands on (float64, 1e-5)."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import tiny
from inducekv.attention import attached
from inducekv.backbone import Backbone
from inducekv.examples import Example
from inducekv.injection import Injection, build_injection
from inducekv.payloads import Payloads
from inducekv.rendering import joined_rows, pad, render
from inducekv.retrieval import Calibration, Retrieved

TOLERANCE = 1e-5
WEIGHTINGS = ["sqrt", "sqrt_max", "log", "none"]


def inputs_of(backbone: Backbone, examples: Sequence[Example], with_answer: bool = False) -> dict[str, Tensor]:
    """Examples as one padded batch, in the order given."""
    ends = backbone.end_tokens
    rendered = [render(backbone.processor, e, with_answer, ends) for e in examples]
    return pad(rendered, tiny.PAD, backbone.device, backbone.dtype, backbone.family.images_per_row)


def one_prompt(backbone: Backbone, learned: Sequence[Example], asked: Example) -> dict[str, Tensor]:
    """Learned examples and a question as the tokens of one prompt."""
    parts = [inputs_of(backbone, [e], True) for e in learned] + [inputs_of(backbone, [asked])]
    along = {"input_ids": 1, "attention_mask": 1, "mm_token_type_ids": 1, "token_type_ids": 1}
    if backbone.family.images_per_row:
        along |= {"pixel_values": 1, "pixel_attention_mask": 1}
    names = dict.fromkeys(name for x in parts for name in x)
    return {name: joined_rows([x[name] for x in parts if name in x], along.get(name, 0)) for name in names}


def memory_of(
    backbone: Backbone, rows: Sequence[Sequence[Example]], weighting: str = "none", alpha: Tensor | None = None
) -> Injection:
    """Every row's own list of examples as uncompressed entries, lambda = 1."""
    learned = list(dict.fromkeys(e.identifier for row in rows for e in row))
    by_id = {e.identifier: e for row in rows for e in row}
    payloads = Payloads.of(backbone.encode([by_id[name] for name in learned]))
    slots = max(map(len, rows))
    indices, valid = torch.zeros(len(rows), slots, dtype=torch.long), torch.zeros(len(rows), slots, dtype=torch.bool)
    for i, row in enumerate(rows):
        for j, e in enumerate(row):
            indices[i, slots - len(row) + j] = learned.index(e.identifier)
            valid[i, slots - len(row) + j] = True
    alpha = valid / valid.sum(-1, keepdim=True).clamp_min(1) if alpha is None else alpha
    retrieved = Retrieved(indices, alpha.float(), alpha.float(), valid)
    injection = build_injection(payloads, retrieved, Calibration.identity(backbone.layers), weighting, backbone)
    assert injection is not None
    return injection


def generated(backbone: Backbone, inputs: dict[str, Tensor], **options: Any) -> tuple[Tensor, Tensor]:
    """Logits of every step, and the new tokens."""
    output = backbone.model.generate(
        **inputs,
        max_new_tokens=4,
        min_new_tokens=4,
        do_sample=False,
        suppress_tokens=[tiny.IMAGE],  # a random model would say it, and then be asked for its picture
        return_dict_in_generate=True,
        output_logits=True,
        **options,
    )
    return torch.stack(output.logits, 1), output.sequences[:, inputs["input_ids"].shape[1] :]


def assert_close(got: Tensor, expected: Tensor) -> None:
    assert got.shape == expected.shape
    assert (got - expected).abs().max().item() < TOLERANCE


LEARNED, ASKED = tiny.example(1), tiny.example(2, answer=False)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param({}, id="greedy"),
        pytest.param({"num_beams": 3}, id="beams"),
        pytest.param({"cache_implementation": "static", "disable_compile": True}, id="static cache"),
        pytest.param({"use_cache": False}, id="no cache"),
    ],
)
@pytest.mark.parametrize("images", [0, 1, 2])
def test_one_entry_reads_as_the_same_tokens_in_the_prompt(backbone: Backbone, images: int, options: dict) -> None:
    if not tiny.PICTURES_FOLLOW_ROWS and images and ("num_beams" in options or "use_cache" in options):
        pytest.skip("this release of transformers mixes up the pictures of the reference")
    learned = tiny.example(1, images=images)
    logits, tokens = generated(backbone, one_prompt(backbone, [learned], ASKED), **options)
    with attached(backbone, memory_of(backbone, [[learned]])):
        got, got_tokens = generated(backbone, inputs_of(backbone, [ASKED]), **options)
    assert torch.equal(got_tokens, tokens)
    assert_close(got, logits)
    plain, _ = generated(backbone, inputs_of(backbone, [ASKED]), **options)
    assert (plain - logits).abs().max() > 0.1, "the memory must matter for this test to mean anything"


@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_every_weighting_is_exact_at_alpha_one(backbone: Backbone, weighting: str) -> None:
    logits, _ = generated(backbone, one_prompt(backbone, [LEARNED], ASKED))
    with attached(backbone, memory_of(backbone, [[LEARNED]], weighting)):
        got, _ = generated(backbone, inputs_of(backbone, [ASKED]))
    assert_close(got, logits)


@pytest.mark.parametrize("options", [{}, {"num_beams": 2}], ids=["greedy", "beams"])
def test_left_padded_rows_with_different_memories(backbone: Backbone, options: dict) -> None:
    if not tiny.PICTURES_FOLLOW_ROWS and options:
        pytest.skip("this release of transformers mixes up the pictures of the reference")
    learned = [tiny.example(3), tiny.example(4, images=2), tiny.example(6, images=0)]
    asked = [tiny.example(7, answer=False), tiny.example(2, images=0, answer=False), tiny.example(9, answer=False)]
    with attached(backbone, memory_of(backbone, [[e] for e in learned])):
        got, tokens = generated(backbone, inputs_of(backbone, asked), **options)
    beams = options.get("num_beams", 1)
    for i, (entry, question) in enumerate(zip(learned, asked, strict=True)):
        logits, expected = generated(backbone, one_prompt(backbone, [entry], question), **options)
        assert torch.equal(tokens[i : i + 1], expected)
        assert_close(got[beams * i : beams * (i + 1)], logits)


def block_masked_logits(backbone: Backbone, learned: Sequence[Example], asked: Example) -> Tensor:
    """Logits of the question's tokens in a prompt in which every learned example sees only itself."""
    inputs = one_prompt(backbone, learned, asked)
    lengths = [inputs_of(backbone, [e], True)["input_ids"].shape[1] for e in learned]
    total = inputs["input_ids"].shape[1]
    block = torch.cat([torch.full((n,), i) for i, n in enumerate([*lengths, total - sum(lengths)])])
    sees = torch.ones(total, total).tril().bool() & ((block[:, None] == block[None]) | (block[:, None] == len(learned)))
    text_inputs = backbone.decoder_inputs(inputs) | {"attention_mask": sees[None, None]}
    with torch.no_grad():
        hidden = backbone.text_model(**text_inputs, use_cache=False).last_hidden_state
        return backbone.model.lm_head(hidden[:, sum(lengths) :])


@pytest.mark.parametrize("count", [2, 4])
def test_several_entries_read_as_a_block_masked_prompt(backbone: Backbone, count: int) -> None:
    learned = [tiny.example(i, images=i % 3) for i in range(3, 3 + count)]
    inputs = inputs_of(backbone, [ASKED])
    with attached(backbone, memory_of(backbone, [learned])), torch.no_grad():
        got = backbone.model(**inputs).logits
    assert_close(got, block_masked_logits(backbone, learned, ASKED))


@pytest.mark.parametrize("family", ["llava", "idefics3"])
def test_all_that_differs_is_the_float32_rotary_table(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """With cos and sin in float64 a hundred million times less is left."""
    backbone = getattr(tiny, family)()
    rotary = backbone.text_model.rotary_emb

    def exact(x: Tensor, position_ids: Tensor) -> tuple[Tensor, Tensor]:
        angles = position_ids[..., None].double() * rotary.inv_freq.double()
        return torch.cat([angles, angles], -1).cos(), torch.cat([angles, angles], -1).sin()

    monkeypatch.setattr(rotary, "forward", exact)
    learned = [tiny.example(i, images=i % 3) for i in range(3, 7)]
    with attached(backbone, memory_of(backbone, [learned])), torch.no_grad():
        got = backbone.model(**inputs_of(backbone, [ASKED])).logits
    expected = block_masked_logits(backbone, learned, ASKED)
    assert got.isfinite().all() and (got - expected).abs().max() < 1e-12


def test_rows_with_different_numbers_of_entries(backbone: Backbone) -> None:
    rows = [[tiny.example(1)], [tiny.example(3, images=0), tiny.example(4), tiny.example(1)], [tiny.example(4)]]
    asked = [tiny.example(i, answer=False) for i in (2, 5, 8)]
    with attached(backbone, memory_of(backbone, rows)):
        got, _ = generated(backbone, inputs_of(backbone, asked))
    for i, (learned, question) in enumerate(zip(rows, asked, strict=True)):
        assert_close(got[i, 0], block_masked_logits(backbone, learned, question)[0, -1])


@pytest.mark.parametrize("family", ["llava", "idefics3", "qwen2_5_vl"])
def test_eager_attention_reads_the_same_as_sdpa(family: str) -> None:
    rows = [[tiny.example(1)], [tiny.example(3), tiny.example(4)]]
    asked = [tiny.example(2, answer=False), tiny.example(5, answer=False)]
    alpha = torch.tensor([[0.0, 1.0], [0.3, 0.7]])
    sdpa, eager = getattr(tiny, family)(), getattr(tiny, family)(attention="eager")
    for weighting in WEIGHTINGS:
        outputs, injection = [], memory_of(sdpa, rows, weighting, alpha)
        for backbone in (sdpa, eager):
            with attached(backbone, injection):
                outputs.append(generated(backbone, inputs_of(backbone, asked))[0])
        assert_close(outputs[1], outputs[0])  # eager takes its softmax in float32


@pytest.mark.parametrize("family", ["llava", "idefics3"])
def test_flex_attention_reads_the_same_as_sdpa(family: str) -> None:
    """Uncompiled; on a GPU this is untested."""
    rows = [[tiny.example(1)], [tiny.example(3), tiny.example(4)]]
    asked = [tiny.example(2, answer=False), tiny.example(5, answer=False)]
    alpha = torch.tensor([[0.0, 1.0], [0.3, 0.7]])
    sdpa, flex = (getattr(tiny, family)(torch.float32) for _ in range(2))
    flex.text_model.set_attn_implementation("flex_attention")
    for weighting in ("log", "none"):
        outputs, injection = [], memory_of(sdpa, rows, weighting, alpha)
        for backbone in (sdpa, flex):
            with torch.compiler.set_stance("force_eager"), attached(backbone, injection):
                outputs.append(generated(backbone, inputs_of(backbone, asked))[0])
        assert (outputs[1] - outputs[0]).abs().max() < 1e-4
    assert flex.text_model.config._attn_implementation == "flex_attention"


def test_scores_are_those_of_the_same_tokens_in_the_prompt(backbone: Backbone) -> None:
    asked = [tiny.example(i, images=i % 2) for i in (2, 5, 8)]
    learned = [tiny.example(1), tiny.example(3, images=0), tiny.example(4)]
    scores = backbone.score(asked, memory_of(backbone, [[e] for e in learned]))
    for i, (entry, question) in enumerate(zip(learned, asked, strict=True)):
        inputs = one_prompt(backbone, [entry, question], tiny.example(0, answer=False))
        asked_alone = inputs_of(backbone, [tiny.example(0, answer=False)])["input_ids"].shape[1]
        with torch.no_grad():
            logits = backbone.model(**inputs).logits[0, :-asked_alone].log_softmax(-1)
        ids = inputs["input_ids"][0, :-asked_alone]
        count = len(question.answer) + 1
        expected = -logits[-count - 1 : -1].gather(1, ids[-count:, None])[:, 0]
        assert_close(scores.token_nll[i, -count:], expected)
        assert scores.token_mask[i].sum() == count
        assert_close(scores.nll[i], expected.mean())


def test_text_only_models_read_memory() -> None:
    text = tiny.llama()
    learned, asked = tiny.example(1, images=0), tiny.example(2, images=0, answer=False)
    logits, _ = generated(text, one_prompt(text, [learned], asked))
    with attached(text, memory_of(text, [[learned]])):
        got, _ = generated(text, inputs_of(text, [asked]))
    assert_close(got, logits)
