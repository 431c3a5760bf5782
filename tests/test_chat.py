"""Chat templates as they are: what the model reads holds the question, and what an entry calls its answer is that."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import LlamaForCausalLM

import tiny
import tiny_families as families
from inducekv import InducedModel, InduceKVConfig
from inducekv.backbone import Backbone
from inducekv.chat import NEXT_QUESTION, QUESTION_ANSWER, chat_of
from inducekv.examples import Example
from inducekv.fingerprint import FingerprintError
from inducekv.rendering import Rendered, render
from inducekv.text_processor import TextProcessor

TURNS = "{% for m in messages %}<{{ m.role }}>BEFORE{{ CONTENT }}<end>\n{% endfor %}"
TEXT, PARTS = "m.content", "m.content[0].text"
EMPTY = "(think)\n\n(/think)\n\n"
OPENED = "<user>q?<end>\n<assistant>"


def template(content: str = TEXT, before: str = "", generation: str = "<assistant>") -> str:
    turns = TURNS.replace("BEFORE", before).replace("CONTENT", content)
    return turns + "{% if add_generation_prompt %}" + generation + "{% endif %}"


def processor(chat_template: str | None) -> TextProcessor:
    words = tiny.tokenizer()
    words.chat_template = chat_template
    return TextProcessor(words)


IN_LAST = "{% if m.role == 'assistant' and loop.last %}" + EMPTY + "{% endif %}"
SWITCH = "{% if enable_thinking is defined and not enable_thinking %}" + EMPTY + "{% endif %}"
TEMPLATES = {
    "text": template(),
    "parts": template(PARTS),
    "text or nothing": template("m.content if m.content is string else ''"),
    "joined to text": template("'x: ' + m.content"),
    "trimmed": template("m.content | trim"),
    "empty thought": template(before=IN_LAST),
    "empty thought, parts": template(PARTS, IN_LAST),
    "opens a thought": template(generation="<assistant>(think)\n"),
    "opens a thought, writes an empty one": template(before=IN_LAST, generation="<assistant>(think)\n"),
    "may be told not to think": template(before=IN_LAST, generation="<assistant>" + SWITCH),
    "its day": "{{ strftime_now('%d %b %Y') }}" + template(),
    "its own system text": "{% if messages[0].role != 'system' %}<user>be good<end>\n{% endif %}" + template(),
    "none": None,
}


def rendered(how: TextProcessor, example: Example, **options: Any) -> tuple[str, str, str]:
    """Prompt alone, and prompt and answer of the whole, decoded."""
    ends = frozenset({tiny.END})
    asked: Rendered = render(how, example, False, ends, **options)
    told: Rendered = render(how, example, True, ends, **options)
    ids, decode = told.inputs["input_ids"][0], how.tokenizer.decode
    place = len(ids) - told.answer_length
    return decode(asked.inputs["input_ids"][0]), decode(ids[:place]), decode(ids[place:])


WORDS = st.text(st.characters(min_codepoint=32, max_codepoint=126), min_size=1, max_size=40)
SPELLED = WORDS.filter(lambda text: text.strip() and "<" not in text)  # the tiny tokenizer reads <...> as tokens


@pytest.mark.parametrize("name", TEMPLATES)
@given(question=SPELLED, answer=SPELLED)
def test_question_and_answer_are_what_the_model_reads(name: str, question: str, answer: str) -> None:
    how = processor(TEMPLATES[name])
    prompt, before, told = rendered(how, Example(question, answer))
    assert question.strip() in prompt and "{" not in prompt.replace(question, "")
    assert told.removesuffix("<end>").strip() == answer.strip()
    assert prompt == before, "a question is read as the question of an example is"
    assert "think" not in told.replace(answer, "")


@pytest.mark.parametrize("name", TEMPLATES)
def test_examples_shown_are_whole_turns_before_the_question(name: str) -> None:
    shown = (Example("first?", "zorb"), Example("second?", "blick"))
    prompt, _, told = rendered(processor(TEMPLATES[name]), Example("third?", "grop"), shown=shown)
    places = [prompt.index(text) for text in ("first?", "zorb", "second?", "blick", "third?")]
    assert places == sorted(places) and told.startswith("grop" if TEMPLATES[name] else " grop")


def test_the_thought_is_in_the_prompt_or_nowhere() -> None:
    question = Example("q?", "zorb")
    for name in ("empty thought", "may be told not to think"):
        assert rendered(processor(TEMPLATES[name]), question)[0] == OPENED + EMPTY
    assert rendered(processor(TEMPLATES["opens a thought"]), question)[0] == OPENED


def test_prompts_do_not_age() -> None:
    assert rendered(processor(TEMPLATES["its day"]), Example("q?", "zorb"))[0].startswith("26 Jul 2024")


def test_templates_that_lose_something_are_refused_and_shown() -> None:
    cases = {
        template("'lost'"): "loses the question or the answer: .*<user>lost<end>",
        template("m.content if m.role == 'user' else 'lost'"): "loses the question or the answer: .*lost<end>",
        "{{ raise_exception('not today') }}": "not today",
    }
    for chat_template, said in cases.items():
        with pytest.raises(ValueError, match=said) as caught:
            render(processor(chat_template), Example("q?", "zorb"), True, frozenset())
        assert len(str(caught.value)) <= 500
    shortens = processor(template("m.content[:60]"))
    with pytest.raises(ValueError, match=r"the question 'qqq.* is not what the model would read there") as caught:
        render(shortens, Example("q" * 1000, "zorb", id="e" * 1000), False, frozenset())
    assert len(str(caught.value)) <= 500
    with pytest.raises(ValueError, match=r"the answer 'aaa.* is not what the model would read there"):
        render(shortens, Example("q?", "a" * 1000), True, frozenset())


def test_a_changed_template_is_tried_anew() -> None:
    how = processor(template())
    assert not chat_of(how).parts
    how.tokenizer.chat_template = template(PARTS)
    assert chat_of(how).parts and rendered(how, Example("q?", "zorb"))[2] == "zorb<end>"


def test_pictures_need_a_place_in_the_template() -> None:
    picture = (tiny.picture(1),)
    with pytest.raises(ValueError, match="takes text alone"):
        render(processor(template()), Example("q?", "zorb", picture), True, frozenset())
    with pytest.raises(ValueError, match=r"reads text alone; got 1 picture"):
        render(processor(tiny.TEMPLATE.replace("PICTURE", "")), Example("q?", "zorb", picture), True, frozenset())


# -- a system text


def test_a_system_text_stands_before_everything_and_memories_record_it(tmp_path) -> None:
    how = processor(TEMPLATES["its own system text"].replace("<{{ m.role }}>", "({{ m.role }})"))
    prompt = rendered(how, Example("q?", "zorb"), system="be kind")[0]
    assert prompt.startswith("(system)be kind<end>") and "be good" not in prompt
    plain = tiny.llama()
    polite = Backbone(plain.model, plain.processor, system="be kind")
    model = InducedModel.from_pretrained(polite, config=InduceKVConfig(budget="1MiB", abstain=False))
    model.learn([Example(f"what is {i}?", "zorb") for i in range(4)], task="t")
    model.save_memory(tmp_path)
    assert InducedModel.from_pretrained(polite, memory=tmp_path).memory.fingerprint["system"] == "be kind"
    for other in (plain, Backbone(plain.model, plain.processor, system="be rude")):
        with pytest.raises(FingerprintError, match="system text 'be kind'"):
            InducedModel.from_pretrained(other, memory=tmp_path)


def test_a_system_text_that_cannot_be_is_refused() -> None:
    backbone = tiny.llama()
    for system, said in (("", "empty"), ("x" * 9000, "9,000 bytes")):
        with pytest.raises(ValueError, match=said):
            Backbone(backbone.model, backbone.processor, system=system)
    gone = processor("{% for m in messages if m.role != 'system' %}{{ m.content }}<end>{% endfor %}")
    with pytest.raises(ValueError, match="the system text 'be kind' is not what the model would read"):
        render(gone, Example("q?"), False, frozenset(), system="be kind")
    with pytest.raises(ValueError, match="no chat turns"):
        render(families.model("paligemma").processor, Example("q?"), False, frozenset(), system="be kind")


# -- models without a chat template


def base_model() -> Backbone:
    backbone = tiny.llama()
    return Backbone(backbone.model, processor(None))


def test_base_models_are_asked_in_a_plain_form_that_memories_record(tmp_path) -> None:
    base = base_model()
    prompt, _, told = rendered(base.processor, Example("q?", "zorb"), shown=[Example("p?", "blick")])
    assert prompt == "Question: p?\nAnswer: blick\n\nQuestion: q?\nAnswer:" and told == " zorb\n\n"
    model = InducedModel.from_pretrained(base, config=InduceKVConfig(budget="1MiB", abstain=False))
    model.learn([Example(f"what is {i}?", "zorb") for i in range(4)], task="t")
    model.save_memory(tmp_path)
    again = InducedModel.from_pretrained(base, memory=tmp_path)
    assert again.memory.fingerprint["prompt"] == QUESTION_ANSWER
    with pytest.raises(FingerprintError, match="prompt: memory 'question_answer', model None"):
        InducedModel.from_pretrained(Backbone(base.model, processor(template())), memory=tmp_path)


def test_a_base_models_answer_ends_where_the_next_question_begins(monkeypatch: pytest.MonkeyPatch) -> None:
    base = base_model()
    goes_on = base.processor.tokenizer(f" zorb{NEXT_QUESTION} next?", return_tensors="pt", add_special_tokens=False)
    asked: list[dict[str, Any]] = []

    def generate(self: Any, input_ids: torch.Tensor, **options: Any) -> torch.Tensor:
        asked.append(options)
        return torch.cat([input_ids, goes_on["input_ids"]], 1)

    monkeypatch.setattr(LlamaForCausalLM, "generate", generate)
    assert base.generate([Example("q?")]) == ["zorb"]
    assert asked[0]["stop_strings"] == [NEXT_QUESTION]
    monkeypatch.undo()
    assert isinstance(base.generate([Example("q?")], max_new_tokens=4)[0], str), "the real one takes these options"


def test_a_base_models_examples_must_not_hold_what_ends_them() -> None:
    with pytest.raises(ValueError, match="where a model without chat template ends answers"):
        render(processor(None), Example("q?", f"zorb{NEXT_QUESTION} p?"), True, frozenset())


def test_letters_that_the_model_has_no_tokens_for_are_left_to_it() -> None:
    assert rendered(processor(template()), Example("wörtlich?", "ö"))[2].endswith("<end>")


def test_no_processor_is_needed_to_name_a_model() -> None:
    backbone = Backbone(tiny.llama().model, None)
    assert "prompt" not in backbone.fingerprint()
    assert SimpleNamespace(**backbone.fingerprint()).model_type == "llama"
