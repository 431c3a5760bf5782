"""Rendering, encoding, scoring and generating; in batches as alone."""

from dataclasses import replace

import pytest
import torch

import tiny
from inducekv import backbone as backbone_module
from inducekv.backbone import Backbone
from inducekv.encoded import ANSWER, IMAGE, TEXT
from inducekv.examples import Example

EXAMPLES = [tiny.example(i, images=i % 3) for i in range(7)]


def test_an_answer_is_what_follows_the_prompt_and_ends_the_turn(backbone: Backbone) -> None:
    example = Example("what is it?", "a zorb. it blicks!", (tiny.picture(1),))
    (batch,) = backbone.prepare([example], True).batches
    ids = batch.inputs["input_ids"][0]
    tokenizer = backbone.processor.tokenizer
    assert tokenizer.decode(ids[batch.answer_mask[0]]) == "a zorb. it blicks!<end>"
    assert tokenizer.decode(ids[~batch.answer_mask[0]]).endswith("what is it?<end>\n<assistant>")
    assert (ids == tiny.BOS).sum() == 1, "the template's own beginning is not doubled"
    (asked,) = backbone.prepare([replace(example, answer=None)], False).batches
    assert torch.equal(asked.inputs["input_ids"][0], ids[~batch.answer_mask[0]])


@pytest.mark.parametrize("batch_size", [1, 3, 32])
def test_every_example_is_in_one_batch(backbone: Backbone, batch_size: int) -> None:
    prepared = backbone.prepare(EXAMPLES, True, batch_size=batch_size)
    assert sorted(torch.cat([b.rows for b in prepared.batches]).tolist()) == list(range(7))
    lengths = [b.inputs["attention_mask"].sum(1) for b in prepared.batches]
    assert (torch.cat(lengths).diff() >= 0).all(), "sorted by length"
    assert all(b.inputs["attention_mask"][:, -1].all() for b in prepared.batches), "padded on the left"


@pytest.mark.parametrize("key_pool", ["last", "mean"])
@pytest.mark.parametrize("key_layer", [None, -1, 0, 1])
def test_batches_encode_as_single_examples_do(backbone: Backbone, key_layer: int | None, key_pool: str) -> None:
    options = {"key_layer": key_layer, "key_pool": key_pool}
    together = backbone.encode(EXAMPLES, batch_size=4, **options)
    questions = backbone.query_keys([replace(e, answer=None) for e in EXAMPLES], batch_size=4, **options)
    for example, got, question in zip(EXAMPLES, together, questions, strict=True):
        (alone,) = backbone.encode([example], **options)
        for name in ("keys", "values", "key"):
            assert torch.allclose(getattr(got, name), getattr(alone, name), atol=1e-4), name
        assert torch.equal(got.kinds, alone.kinds) and (got.span, got.answer_length) == (
            alone.span,
            alone.answer_length,
        )
        assert got.key.norm().item() == pytest.approx(1, abs=1e-5)
        assert torch.allclose(got.key, question, atol=1e-5), "a question has the key its example has"


def test_encodings_know_their_tokens(backbone: Backbone) -> None:
    for example, encoded in zip(EXAMPLES, backbone.encode(EXAMPLES), strict=True):
        (batch,) = backbone.prepare([example], True).batches
        ids = batch.inputs["input_ids"][0]
        assert encoded.keys.shape == encoded.values.shape == (3, 2, len(ids), backbone.head_dim)
        assert encoded.answer_length == len(example.answer) + 1
        assert encoded.kinds.tolist() == [
            ANSWER if i >= len(ids) - encoded.answer_length else IMAGE if token == tiny.IMAGE else TEXT
            for i, token in enumerate(ids.tolist())
        ]
        answers = encoded.select(encoded.kinds == ANSWER)
        assert answers.tokens == encoded.answer_length and answers.span == encoded.span
        assert torch.equal(answers.keys, encoded.keys[:, :, -encoded.answer_length :])


def test_spans_are_positions_not_tokens(llava: Backbone, qwen: Backbone) -> None:
    example = Example("what?", "zorb", (tiny.picture(1, 84, 84),))
    (plain,), (packed,) = llava.encode([example]), qwen.encode([example])
    assert plain.span == plain.tokens
    pictures = int((packed.kinds == IMAGE).sum())
    assert pictures == 9 and packed.span == packed.tokens - pictures + 3  # a 3 x 3 grid takes 3 positions


def test_scoring_in_batches_and_prepared_is_scoring_alone(backbone: Backbone) -> None:
    scores = backbone.score(EXAMPLES, batch_size=3)
    prepared = backbone.prepare(EXAMPLES, True, embed=True, batch_size=3)
    again = backbone.score(prepared)
    assert torch.equal(again.nll, scores.nll) and torch.equal(again.token_mask, scores.token_mask)
    for i, example in enumerate(EXAMPLES):
        alone = backbone.score([example])
        assert alone.nll[0].item() == pytest.approx(scores.nll[i].item(), abs=1e-4)
        assert scores.token_mask[i].sum() == len(example.answer) + 1
    assert (scores.token_nll[~scores.token_mask] == 0).all()


def test_prepared_pictures_are_seen_once(llava: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    prepared = llava.prepare(EXAMPLES, True, embed=True)

    def blind(*args: object, **options: object) -> None:
        raise AssertionError("the vision tower ran again")

    monkeypatch.setattr(llava.model.model.vision_tower, "forward", blind)
    assert llava.score(prepared).nll.shape == (7,)
    with pytest.raises(AssertionError, match="ran again"):
        llava.score(EXAMPLES)


def test_generating_in_batches_is_generating_alone(backbone: Backbone) -> None:
    asked = [replace(e, answer=None) for e in EXAMPLES]
    together = backbone.generate(asked, max_new_tokens=5, batch_size=3)
    assert together == [backbone.generate([e], max_new_tokens=5)[0] for e in asked]
    assert together == backbone.generate(backbone.prepare(asked, False), max_new_tokens=5)
    assert len(set(together)) > 2 and all(text == text.strip() for text in together)


def test_only_sense_is_accepted(llava: Backbone) -> None:
    with pytest.raises(ValueError, match="no examples"):
        llava.encode([])
    with pytest.raises(ValueError, match="'lost' has no answer"):
        llava.encode([Example("what?", id="lost")])
    with pytest.raises(ValueError, match="'empty' has no answer"):
        llava.score([Example("what?", "", id="empty")])
    with pytest.raises(ValueError, match="key_layer must be between 0 and 3 for this model, or -1 for the last; got 4"):
        llava.encode(EXAMPLES, key_layer=4)
    with pytest.raises(ValueError, match="num_return_sequences"):
        llava.generate(EXAMPLES, num_return_sequences=2)
    with pytest.raises(ValueError, match=r"use prepare\(examples, True\)"):
        llava.score(llava.prepare(EXAMPLES, False))
    with pytest.raises(ValueError, match=r"use prepare\(examples, False\)"):
        llava.generate(llava.prepare(EXAMPLES, True))
    with pytest.raises(ValueError, match="batch_size"):
        llava.encode(EXAMPLES, batch_size=0)


def test_our_passes_leave_no_state_on_the_model(qwen: Backbone) -> None:
    """Qwen-VL remembers position offsets between calls; ours are put back."""
    marker = torch.tensor([[5]])
    qwen.model.model.rope_deltas = marker
    qwen.encode(EXAMPLES)
    qwen.query_keys(EXAMPLES)
    qwen.score(EXAMPLES)
    qwen.generate(EXAMPLES, max_new_tokens=2)
    assert qwen.model.model.rope_deltas is marker
    qwen.model.model.rope_deltas = None


def test_fingerprints_tell_models_apart_but_not_dtypes(llava: Backbone, qwen: Backbone) -> None:
    mine = llava.fingerprint()
    assert mine == tiny.llava().fingerprint() and mine != qwen.fingerprint()
    assert mine != llava.fingerprint(key_layer=2) and mine != llava.fingerprint(key_pool="mean")
    assert llava.fingerprint(key_layer=1) == mine, "None is the middle layer"
    assert llava.fingerprint(key_layer=3) == llava.fingerprint(key_layer=-1), "-1 is the last layer"
    assert tiny.llava(torch.float32).fingerprint() == mine and tiny.llava(torch.bfloat16).fingerprint() == mine
    other = tiny.llava()
    other.model.get_input_embeddings().weight.data[5, 0] += 1
    assert other.fingerprint() != mine


def test_a_saved_model_is_loaded_with_its_processor(llava: Backbone, tmp_path: object) -> None:
    llava.model.save_pretrained(tmp_path)
    llava.processor.save_pretrained(tmp_path)
    loaded = Backbone.from_pretrained(tmp_path, dtype=torch.float64)
    asked = [replace(e, answer=None) for e in EXAMPLES]
    assert loaded.generate(asked, max_new_tokens=4) == llava.generate(asked, max_new_tokens=4)
    assert loaded.fingerprint() == llava.fingerprint()


def test_foreign_models_are_refused(tmp_path: object) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(ValueError, match=r"'bert'.*not supported; supported: .*llava"):
        Backbone.from_pretrained(tmp_path)


def test_progress_counts_every_example(llava: Backbone) -> None:
    class Counting:
        def __init__(self) -> None:
            self.stages: list[list[int]] = []

        def start(self, what: str, total: int) -> None:
            self.stages.append([0, total])

        def advance(self, n: int = 1) -> None:
            self.stages[-1][0] += n

        def stop(self) -> None:
            pass

    progress = Counting()
    llava.encode(EXAMPLES, batch_size=3, progress=progress)
    llava.score(EXAMPLES, batch_size=3, progress=progress)
    llava.query_keys(EXAMPLES, batch_size=3, progress=progress)
    llava.generate(EXAMPLES, max_new_tokens=1, batch_size=3, progress=progress)
    assert len(progress.stages) == 4 and all(done == total == 7 for done, total in progress.stages)


def test_rendered_examples_are_kept_only_where_asked_and_within_bytes(llava, monkeypatch):
    made = []
    render = backbone_module.render
    monkeypatch.setattr(backbone_module, "render", lambda *given: (made.append(given[1]), render(*given))[1])
    first, second = tiny.example(1), tiny.example(2)
    before = llava.prepare([first, second], False)
    llava.prepare([first, second], False)
    assert len(made) == 4 and not len(llava.rendered)
    try:
        llava.rendered.limit = "64MiB"
        for _ in range(2):
            again = llava.prepare([first, second], False)
        assert len(made) == 6 and len(llava.rendered) == 2
        for batch, other in zip(before.batches, again.batches, strict=True):
            assert all(torch.equal(batch.inputs[name], other.inputs[name]) for name in batch.inputs)
        for _ in range(2):
            answered = llava.prepare([first], True)  # with its answer it is something else
        assert len(made) == 7 and len(llava.rendered) == 3 and answered.max_answer
        llava.prepare([second], False, shown=[[first]])  # and after others too, which is not kept
        assert len(made) == 8 and len(llava.rendered) == 3
        llava.rendered.limit = llava.rendered.nbytes - 1
        assert len(llava.rendered) == 2 and llava.rendered.nbytes <= llava.rendered.limit
    finally:
        llava.rendered.limit = 0
    assert not llava.rendered.nbytes
