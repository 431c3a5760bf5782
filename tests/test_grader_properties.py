"""What holds of every answer: different words differ, whatever the script; the letter, slots and F1 of any answers."""

import unicodedata
from collections import Counter

import numpy as np
import pytest
import regex
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from inducekv.continual.graders import GRADERS, exact_match, normalised
from inducekv.continual.graders.captions import caption_tokens
from inducekv.continual.graders.choice import letter_meant
from inducekv.examples import Example

any_text = st.text(max_size=20) | st.text("aé दि5.-+*/#_%$✓(\\u200d)\\n−–", max_size=12)
words = st.text(st.characters(categories=("L", "M", "N"), max_codepoint=0x2FFF), min_size=1, max_size=8)
IGNORABLE = regex.compile(r"\p{Default_Ignorable_Code_Point}")
CATEGORIES = ("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc", "Me", "Nd", "Nl", "No", "Sm", "Sc", "So")


def folded(text: str) -> str:
    return unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())


@settings(deadline=None, max_examples=300)
@given(any_text)
@example("2**3")
def test_normalising_twice_is_normalising_once(text: str) -> None:
    assert normalised(normalised(text)) == normalised(text)


@settings(deadline=None, max_examples=200)
@given(any_text)
def test_letters_marks_numbers_and_symbols_stay(text: str) -> None:
    """All but what Unicode says to ignore; the mathematical minus is a hyphen."""
    kept = Counter(c for c in folded(IGNORABLE.sub("", text)) if unicodedata.category(c) in CATEGORIES and c != "−")
    there = Counter(normalised(text))
    assert all(there[c] == count for c, count in kept.items())


@settings(deadline=None, max_examples=200)
@given(words, st.characters(categories=("Mn", "Mc"), max_codepoint=0x1AFF))
def test_a_word_with_another_mark_is_another_word(word: str, mark: str) -> None:
    assume(folded(word + mark) != folded(word) and normalised("a" + mark) != "a")
    assert not exact_match(word + mark, word)
    assert exact_match(word + mark, word + mark)


@settings(deadline=None)
@given(st.text(st.characters(categories=("P", "S")), min_size=1, max_size=4).filter(lambda text: folded(text).strip()))
def test_an_answer_of_symbols_alone_is_right_as_it_is(symbols: str) -> None:
    assume(not any(unicodedata.category(c)[0] in "LMN" for c in folded(symbols)))  # ™ is the letters tm
    assert exact_match(symbols, symbols)
    assert not exact_match(symbols, symbols + "=")


@given(st.decimals(-1000, 1000, places=2))
def test_a_number_is_not_the_same_without_its_sign_or_point(number) -> None:
    text = str(number)
    assume(number)
    for told in (text, f"It is {text}", text.replace("-", "−"), f"({text})", f"{text}."):
        assert normalised(told).endswith(text)
    if abs(number) < 1:
        assert normalised(text.replace("0.", ".")) == text.replace("0.", ".")
        assert not exact_match(text.replace("0.", "."), text.replace("0.", "").replace(".", ""))
    assert not exact_match(text.removeprefix("-"), f"-{text.removeprefix('-')}")


@pytest.mark.parametrize("one, other", [("C#", "C"), ("$5", "#5"), ("a/b", "a*b"), ("2 * 3", "2 + 3"), ("R&B", "R B")])
def test_symbols_make_a_difference(one: str, other: str) -> None:
    assert not exact_match(one, other) and exact_match(f" {one}.", one)


@pytest.mark.parametrize(
    "told", ["**red**", "*red*", "`red`", "# Red", "* red", "“Red.”", "red!", "r\u00aded", "(red)"]
)
def test_layout_and_punctuation_make_none(told: str) -> None:
    assert exact_match(told, "red")


def test_caption_words_keep_marks_and_signs() -> None:
    assert caption_tokens("एक लाल गेंद") == ["एक", "लाल", "गेंद"]
    assert caption_tokens("-5 °C, .5 m, cafe\u0301; 3-5 C#") == ["-5", "°", "c", ".5", "m", "café", "3-5", "c", "#"]
    assert caption_tokens("… , — ! ?") == []


letters = st.sampled_from("ABCDE")
DECLARING = [
    "The answer is {}.",
    "Answer: {}",
    "**Answer:** ({}) blue",
    "\\boxed{{{}}}",
    "$\\boxed{{\\text{{{}}}}}$",
    "I choose option {}.",
    "So {} is the correct answer.",
    "the correct option is **{}**",
    "\n({})\n",
    "Final answer: {}, not another.",
    "The answer is {} because it is blue.",
]


@settings(deadline=None, max_examples=200)
@given(st.lists(st.tuples(st.sampled_from(DECLARING), letters), min_size=1, max_size=4), letters)
def test_the_letter_declared_last_is_graded(said, named: str) -> None:
    declared = " Then again: ".join(form.format(letter) for form, letter in said)
    for text in (declared, f"Option {named} looks right, but wait. {declared}", f"{named}. coli is seen. {declared}"):
        assert letter_meant(text) == said[-1][1]
    assert letter_meant(f"{declared}\nI do not think the answer is {named}.") == said[-1][1]


@pytest.mark.parametrize(
    "text",
    [
        "The answer isn't A.",
        "e.g. a plant",
        "a dark one",
        "The answer is a dark one",
        "The answer is C++",
        "at 5 a.m.",
        "Options A and B",
        "C is not the answer",
        "",
    ],
)
def test_no_letter_is_read_where_none_is_declared(text: str) -> None:
    assert letter_meant(text) is None


@pytest.mark.parametrize(
    "text, meant",
    [
        ("B because it is blue", "B"),
        ("(b)", "B"),
        ("not A but B", None),
        ("The answer is not A but B", "B"),
        ("option c", "C"),
    ],
)
def test_letters_that_are_led_or_named(text: str, meant: str | None) -> None:
    assert letter_meant(text) == meant


slot_lists = st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from("xyz")), min_size=1, max_size=4)


def written(pairs) -> str:
    return "; ".join(f"{slot} = {words}" for slot, words in pairs)


@settings(deadline=None)
@given(st.lists(st.tuples(slot_lists, slot_lists | st.just([])), min_size=1, max_size=6), st.randoms())
def test_slot_f1_is_the_micro_f1_whatever_the_order(rows, random) -> None:
    expected, said = [row[0] for row in rows], [random.sample(row[1], len(row[1])) for row in rows]
    scores = GRADERS["slot_f1"].scores([written(pairs) for pairs in said], [Example("q", written(e)) for e in expected])
    right = sum((Counter(s) & Counter(e)).total() for s, e in zip(said, expected, strict=True))
    precision, recall = right / max(1, sum(map(len, said))), right / sum(map(len, expected))
    f1 = 2 * precision * recall / (precision + recall) if right else 0
    assert scores.mean() == pytest.approx(f1) and ((scores >= 0) & (scores <= 1 + 1e-12)).all()
    exact = GRADERS["slot_exact"].scores([written(s) for s in said], [Example("q", written(e)) for e in expected])
    assert exact.tolist() == [float(Counter(s) == Counter(e)) for s, e in zip(said, expected, strict=True)]
    assert scores.tolist() == [1.0] * len(rows) or not np.all(exact == 1)
