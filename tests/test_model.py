"""The façade: learn, answer with sources, attach, forget, save and load."""

import hashlib

import pytest
import torch

import tiny
from inducekv.config import InduceKVConfig
from inducekv.examples import Example
from inducekv.memory_file import FingerprintError
from inducekv.model import InducedModel
from test_learner import FAST, colour_task

CONFIG = InduceKVConfig(**FAST, abstain=False, top_k=3)


def taught(backbone, config=CONFIG):
    model = InducedModel.from_pretrained(backbone, config=config)
    model.learn(colour_task(2), task="colours")
    model.learn([tiny.example(i) for i in range(4)], task="things")
    return model


@pytest.fixture(scope="module")
def model(llava):
    return taught(llava)


def asked(count=3):
    return [Example(e.question, None, e.images, f"ask-{i}") for i, e in enumerate(colour_task(1, seed=5)[:count])]


def test_answers_name_their_sources(model):
    question = asked(1)[0]
    answer = model.answer(question.images[0], question.question, max_new_tokens=4)
    assert len(answer.sources) == 3
    assert sum(source.alpha for source in answer.sources) == pytest.approx(1, abs=1e-5)
    assert [s.similarity for s in answer.sources] == sorted((s.similarity for s in answer.sources), reverse=True)
    assert all(0 < source.mass < 1 for source in answer.sources)
    known = {entry.id: entry for entry in model.memory.entries}
    for source in answer.sources:
        entry = known[source.id]
        assert (source.task, source.question, source.answer) == (entry.task, entry.question, entry.answer)


def test_a_batch_answers_as_one_by_one(model):
    questions = [*asked(), Example("a question without a picture?")]
    together = model.answer_all(questions, max_new_tokens=4)
    for question, answer in zip(questions, together, strict=True):
        alone = model.answer(list(question.images), question.question, max_new_tokens=4)
        assert alone.text == answer.text
        assert [s.id for s in alone.sources] == [s.id for s in answer.sources]
    assert model.answer_all([]) == []


def test_answers_without_sources_are_the_same(model):
    named, plain = (model.answer_all(asked(), max_new_tokens=4, sources=sources) for sources in (True, False))
    assert [answer.text for answer in plain] == [answer.text for answer in named]
    assert all(answer.sources for answer in named) and not any(answer.sources for answer in plain)


def test_attention_mass_of_a_prompt_does_not_depend_on_the_batch(model):
    questions = asked()
    together = model.answer_all(questions, max_new_tokens=1)
    alone = [model.answer_all([question], max_new_tokens=1)[0] for question in questions]
    for one, other in zip(alone, together, strict=True):
        assert [s.mass for s in one.sources] == pytest.approx([s.mass for s in other.sources], rel=1e-4)


def test_attached_lets_plain_generate_read_the_same_memory(model):
    question = asked(1)
    answer = model.answer_all(question, max_new_tokens=4)[0]
    (batch,) = model.backbone.prepare(question, False).batches
    with model.attached(record_mass=True) as attachment:
        tokens = model.backbone.model.generate(**batch.inputs, max_new_tokens=4, do_sample=False)
        mass = attachment.mass
    new = tokens[:, batch.inputs["input_ids"].shape[1] :]
    text = model.backbone.processor.tokenizer.batch_decode(new, skip_special_tokens=True)[0].strip()
    assert text == answer.text
    assert mass[0].flip(0).tolist() == pytest.approx([source.mass for source in answer.sources], rel=1e-4)


def test_an_empty_memory_and_a_closed_context_are_the_plain_model(model):
    (batch,) = model.backbone.prepare(asked(), False).batches
    run = model.backbone.model
    plain = run(**batch.inputs).logits
    with model.attached():
        assert not torch.equal(run(**batch.inputs).logits, plain)
    assert torch.equal(run(**batch.inputs).logits, plain)
    with InducedModel.from_pretrained(model.backbone, config=CONFIG).attached():
        assert torch.equal(run(**batch.inputs).logits, plain)


def test_a_question_unlike_anything_learned_is_answered_by_the_plain_model(llava):
    model = taught(llava, CONFIG.replace(abstain=True))
    model.memory.thresholds = dict.fromkeys(model.memory.tasks, 2.0)  # nothing is ever this similar
    for answer, plain in zip(
        model.answer_all(asked(), max_new_tokens=4), llava.generate(asked(), None, 4), strict=True
    ):
        assert answer.text == plain and answer.sources == []


def test_learning_leaves_the_model_alone(llava):
    def digest():
        return hashlib.sha256(b"".join(p.detach().numpy().tobytes() for p in llava.model.parameters())).hexdigest()

    before = digest()
    taught(llava)
    assert digest() == before


def test_saved_and_loaded_it_answers_the_same(model, tmp_path):
    model.save_memory(tmp_path)
    again = InducedModel.from_pretrained(model.backbone, memory=tmp_path)
    assert again.config.top_k == 3 and again.config.abstain is False
    assert again.training_state == model.training_state
    assert again.answer_all(asked(), max_new_tokens=4) == model.answer_all(asked(), max_new_tokens=4)
    other = InducedModel.from_pretrained(model.backbone)
    other.load_memory(tmp_path)
    assert other.answer_all(asked(), max_new_tokens=4) == model.answer_all(asked(), max_new_tokens=4)


def test_a_forgotten_task_leaves_no_trace_and_the_rest_answers_as_if_alone(llava, tmp_path):
    model = taught(llava)
    gone = [entry for entry in model.memory.entries if entry.task == "colours"]
    kept = [entry for entry in model.memory.entries if entry.task == "things"]
    assert model.forget("colours") == len(gone) == 6
    model.save_memory(tmp_path)
    stored = b"".join(path.read_bytes() for path in tmp_path.iterdir())
    for entry in gone:
        assert entry.payload.keys.numpy().tobytes() not in stored
        assert entry.payload.values.numpy().tobytes() not in stored
        assert entry.id.encode() not in stored
    assert b"colours" not in stored
    alone = InducedModel.from_pretrained(llava, config=CONFIG)
    alone.memory.calibration = model.memory.calibration
    alone.memory.add_all(kept)
    assert alone.answer_all(asked(), max_new_tokens=4) == model.answer_all(asked(), max_new_tokens=4)
    with pytest.raises(ValueError, match="no task 'colours'"):
        model.forget("colours")


def test_learning_goes_on_from_a_loaded_memory(llava, tmp_path):
    taught(llava).save_memory(tmp_path)
    again = InducedModel.from_pretrained(llava, memory=tmp_path, config=CONFIG.replace(budget="1MiB"))
    report = again.learn(colour_task(2, seed=3), task="more")
    assert again.memory.budget == 2**20
    assert again.memory.tasks == ("colours", "things", "more")
    assert report.before["anchors"] > 0


def test_query_keys_are_those_of_answering(model):
    keys = model.query_keys(asked())
    similarity = keys @ model.memory.keys().T
    for row, answer in zip(similarity, model.answer_all(asked(), max_new_tokens=1), strict=True):
        assert model.memory.entries[int(row.argmax())].id == answer.sources[0].id


def test_a_memory_of_another_model_or_key_is_refused(model, llava, qwen, tmp_path):
    model.save_memory(tmp_path)
    with pytest.raises(FingerprintError, match="another model"):
        InducedModel.from_pretrained(qwen, memory=tmp_path)
    with pytest.raises(FingerprintError, match="another model"):
        InducedModel.from_pretrained(qwen, memory=model.memory)
    with pytest.raises(ValueError, match="key_pool"):
        InducedModel.from_pretrained(llava, memory=tmp_path, config=CONFIG.replace(key_pool="mean"))
    with pytest.raises(ValueError, match="payloads as int4"):
        InducedModel.from_pretrained(llava, memory=tmp_path, config=CONFIG.replace(payload_dtype="float16"))


def test_a_loaded_model_needs_its_processor(llava):
    with pytest.raises(ValueError, match="processor"):
        InducedModel.from_pretrained(llava.model)
    model = InducedModel.from_pretrained(llava.model, processor=llava.processor, config=CONFIG)
    assert len(model.memory) == 0


@pytest.mark.parametrize("payload", ["none", "mean_pool", "keep_answer"])
def test_every_payload_and_the_papers_point_go_through(qwen, payload):
    config = InduceKVConfig.paper(payload=payload, payload_tokens=2, **FAST)
    model = InducedModel.from_pretrained(qwen, config=config)
    model.learn([tiny.example(i) for i in range(3)], task="things")
    assert len(model.answer_all(asked(1), max_new_tokens=2)[0].sources) == 3
