"""Standard errors and comparisons that respect pictures asked about more than once."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from inducekv.continual.statistics import clustered_standard_error, paired_bootstrap


def alone(block):
    return [list(range(len(block)))]


def test_without_shared_pictures_it_is_the_textbook_standard_error():
    scores = [0.0, 1.0, 1.0, 0.0, 1.0, 0.5]
    expected = 100 * np.std(scores, ddof=1) / np.sqrt(len(scores))
    assert clustered_standard_error([scores], alone(scores)) == pytest.approx(expected)


@given(st.lists(st.booleans(), min_size=3, max_size=20).filter(lambda scores: len(set(scores)) == 2))
def test_asking_each_question_twice_about_its_picture_teaches_nothing(scores):
    once = [float(score) for score in scores]
    names = list(range(len(once)))
    assert clustered_standard_error([once * 2], [names * 2]) == pytest.approx(clustered_standard_error([once], [names]))


def test_tasks_weigh_the_same_whatever_their_size():
    small, large = [0.0, 1.0], [0.0, 1.0] * 50
    error = clustered_standard_error([small, large], [["a", "b"], list(range(100))])
    by_hand = 2 * (0.5 / 4) ** 2 + 100 * (0.5 / 200) ** 2
    assert error == pytest.approx(100 * np.sqrt(102 / 101 * by_hand))


def test_a_picture_shared_by_two_tasks_is_one_cluster():
    scores = [[0.0, 1.0, 0.0, 1.0]] * 2
    shared = clustered_standard_error(scores, [["a", "b", "c", "d"]] * 2)
    apart = clustered_standard_error(scores, [["a", "b", "c", "d"], ["e", "f", "g", "h"]])
    assert shared > 1.3 * apart


def test_the_bootstrap_agrees_with_the_standard_error():
    generator = np.random.default_rng(0)
    first = [generator.integers(0, 2, 200).astype(float) for _ in range(3)]
    second = [np.zeros(200)] * 3
    names = [[(t, i // 2) for i in range(200)] for t in range(3)]
    compared = paired_bootstrap(first, second, names, draws=4000)
    error = clustered_standard_error(first, names)
    assert compared.difference == pytest.approx(100 * np.mean(first))
    assert (compared.high - compared.low) / (2 * 1.96) == pytest.approx(error, rel=0.08)
    assert compared.p_value < 0.001


def test_equal_methods_do_not_differ_and_the_same_seed_draws_the_same():
    generator = np.random.default_rng(1)
    first, second = ([generator.integers(0, 2, 100).astype(float)] for _ in range(2))
    names = alone(first[0])
    same = paired_bootstrap(first, first, names)
    assert (same.difference, same.low, same.high, same.p_value) == (0, 0, 0, 1)
    assert paired_bootstrap(first, second, names) == paired_bootstrap(first, second, names)
    assert paired_bootstrap(first, second, names).p_value > 0.02


def test_pairing_pays():
    generator = np.random.default_rng(2)
    hard = generator.integers(0, 2, 400).astype(float)
    better = np.maximum(hard, generator.random(400) < 0.1)
    names = alone(hard)
    compared = paired_bootstrap([better], [hard], names)
    assert compared.high - compared.low < 3.92 * clustered_standard_error([hard], names) / 1.5


@pytest.mark.parametrize(
    "first, second, clusters, said",
    [
        ([[1.0]], [[1.0, 0.0]], [[0]], "same questions"),
        ([], [], [], "at least one question"),
        ([[]], [[]], [[]], "at least one question"),
        ([[1.0]], [[1.0]], [[0, 1]], "a cluster for each score"),
    ],
)
def test_what_cannot_be_compared_is_refused(first, second, clusters, said):
    with pytest.raises(ValueError, match=said):
        paired_bootstrap(first, second, clusters)


def test_one_picture_gives_no_standard_error():
    with pytest.raises(ValueError, match="at least two pictures"):
        clustered_standard_error([[1.0, 0.0]], [["a", "a"]])
