"""ROUGE-L against a plain recursion, and its limits."""

from functools import cache

from hypothesis import given, settings
from hypothesis import strategies as st

from inducekv.continual.graders.rouge import common_subsequence, rouge_l

WORDS = st.lists(st.sampled_from(["a", "b", "c"]), max_size=7)


@settings(deadline=None)
@given(WORDS, WORDS)
def test_the_common_subsequence_is_the_longest(first: list[str], second: list[str]) -> None:
    @cache
    def longest(i: int, j: int) -> int:
        if i == len(first) or j == len(second):
            return 0
        if first[i] == second[j]:
            return 1 + longest(i + 1, j + 1)
        return max(longest(i + 1, j), longest(i, j + 1))

    assert common_subsequence(first, second) == common_subsequence(second, first) == longest(0, 0)


@settings(deadline=None)
@given(WORDS, WORDS)
def test_rouge_l_is_one_for_the_same_words_alone(first: list[str], second: list[str]) -> None:
    score = rouge_l(" ".join(first).upper() + ".", " ".join(second))
    assert 0 <= score <= 1
    assert (score == 1) == (first == second and bool(first))
    assert (score > 0) == bool(set(first) & set(second))


def test_rouge_l_of_a_known_pair() -> None:
    assert rouge_l("the gunman police killed", "police killed the gunman") == 0.5
    assert rouge_l("police kill the gunman", "police killed the gunman") == 0.75
