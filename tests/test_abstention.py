"""From which similarity on a task's entries are read: the rule, to the digit."""

import statistics

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from inducekv.abstention import thresholds
from inducekv.entry import Entry
from inducekv.examples import Example
from inducekv.key_space import KeySpace
from inducekv.selection.questions import Question
from inducekv.stored_payload import Payload

ZEROS = torch.zeros(1, 1, 1, 2)
STORED = Payload(ZEROS, ZEROS, None, None, "float32", 2)


def entry(name, task="t"):
    return Entry(name, task, torch.zeros(2).half(), STORED, 1, 1)


def at(cosines):
    """Unit keys `[n, 2]` of these similarities to the first axis."""
    along = torch.tensor(cosines, dtype=torch.float64)
    return torch.stack([along, (1 - along**2).sqrt()], dim=1)


def ask(cosines, task="t", name="q{}"):
    return [Question(Example("q", "a", (), name.format(i)), key, task) for i, key in enumerate(at(cosines))]


@settings(deadline=None)
@given(st.lists(st.floats(-0.99, 0.99), min_size=1, max_size=31).filter(lambda each: len(each) % 2))
def test_the_threshold_lies_twice_as_far_below_the_low_quantile_as_that_lies_below_the_median(cosines):
    limit = thresholds([entry("e")], at([1.0]), ask(cosines), space="raw")["t"]
    low, middle = np.quantile(cosines, 0.05), statistics.median(cosines)
    assert limit == pytest.approx(low - 2 * (middle - low), abs=1e-9)


def test_thresholds_of_single_precision_keys_are_worked_out_in_double_precision():
    cosines = [0.123456789, 0.3, 0.7, 0.81, 0.9]
    asked = [Question(q.example, q.key.float(), q.task) for q in ask(cosines)]
    single = [float(q.key[0]) for q in asked]
    low, middle = np.quantile(single, 0.05), statistics.median(single)
    limit = thresholds([entry("e")], at([1.0]).float(), asked, space="raw")["t"]
    assert limit == pytest.approx(low - 2 * (middle - low), abs=1e-12)


def test_a_threshold_is_never_above_the_low_quantile():
    """Of two questions the lower one is the median here, which lies below the quantile."""
    limit = thresholds([entry("e")], at([1.0]), ask([0.2, 0.6]), space="raw")["t"]
    assert limit == pytest.approx(0.2 + 0.05 * 0.4)


def test_only_entries_and_questions_of_the_task_count_and_no_question_reads_its_own():
    entries, keys = [entry("own"), entry("foreign", "other"), entry("far")], at([1.0, 1.0, -1.0])
    limits = thresholds(entries, keys, ask([0.5], name="own") + ask([0.9], "unlearned"), space="raw")
    assert limits == {"t": pytest.approx(-0.5)}, "compared with `far` alone; `other` was not asked about"
    limits = thresholds(entries, keys, ask([0.5]) + ask([0.75], "other"), space="raw")
    assert limits == {"t": pytest.approx(0.5), "other": pytest.approx(0.75)}
    assert thresholds(entries[:1], keys[:1], ask([0.5], name="own"), space="raw") == {}
    mixed = ask([0.5], name="own") + ask([0.25], name="new")
    assert thresholds(entries[:1], keys[:1], mixed, space="raw") == {"t": pytest.approx(0.25)}


def test_similarities_are_those_of_retrieval():
    entries, keys, asked = [entry("a"), entry("b")], at([0.9, 0.3]), ask([0.8])
    for space in ("raw", "centred", "whitened"):
        expected = KeySpace.of(keys, space).similarities(torch.stack([q.key for q in asked]), keys).amax()
        assert thresholds(entries, keys, asked, space) == {"t": pytest.approx(float(expected))}
    assert thresholds(entries, keys, asked, "centred") != thresholds(entries, keys, asked, "raw")
