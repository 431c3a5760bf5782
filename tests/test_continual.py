"""Streams, figures, grading, the runner and the page it makes."""

import json
import re

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from inducekv.continual import metrics
from inducekv.continual.gallery import AnsweredQuestion, ShownSource, picked_questions
from inducekv.continual.graders import accuracy, exact_match
from inducekv.continual.methods.base import Method
from inducekv.continual.methods.sequential_lora import solve_size
from inducekv.continual.runner import run
from inducekv.continual.stream import Experience, Stream
from inducekv.examples import Example

NAN = float("nan")
MATRIX = np.array([[80.0, NAN, NAN], [90.0, 60.0, NAN], [70.0, 65.0, 40.0]])


def test_figures_of_a_matrix_worked_out_by_hand():
    assert metrics.average(MATRIX) == pytest.approx((80 + 75 + 175 / 3) / 3)
    assert metrics.last(MATRIX) == pytest.approx(175 / 3)
    assert metrics.forgetting(MATRIX) == pytest.approx(((90 - 70) + (60 - 65)) / 2)
    assert metrics.backward_transfer(MATRIX) == pytest.approx(((70 - 80) + (65 - 60)) / 2)


def test_one_task_forgets_nothing():
    one = np.array([[50.0]])
    assert (metrics.average(one), metrics.last(one), metrics.forgetting(one)) == (50, 50, 0)


@given(st.integers(2, 6), st.randoms(use_true_random=False))
def test_forgetting_is_at_least_what_backward_transfer_says(tasks, random):
    matrix = metrics.empty_matrix(tasks)
    for t in range(tasks):
        matrix[t, : t + 1] = [random.uniform(0, 100) for _ in range(t + 1)]
    assert metrics.forgetting(matrix) >= -metrics.backward_transfer(matrix) - 1e-9
    first_tries = np.diag(matrix).mean()  # BWT (T-1) = (Last - mean of the diagonal) * T / (T - 1)
    assert metrics.backward_transfer(matrix) == pytest.approx(
        (metrics.last(matrix) - first_tries) * tasks / (tasks - 1)
    )


@pytest.mark.parametrize("matrix", [np.zeros((2, 3)), np.zeros((0, 0)), metrics.empty_matrix(2)])
def test_an_unfinished_matrix_has_no_figures(matrix):
    with pytest.raises(ValueError, match="accuracy matrix"):
        metrics.last(matrix)


@pytest.mark.parametrize(
    "answer, expected, right",
    [
        ("Red.", "red", True),
        ("  a  RED\nball ", "a red ball", True),
        ("ﬁve", "five", True),
        ("2.5", "2.5", True),
        ("2.5", "25", False),
        ("-3", "3", False),
        ("red ball", "red", False),
        ("", "", False),
        ("...", "", False),
        ("", "red", False),
    ],
)
def test_exact_match(answer, expected, right):
    assert exact_match(answer, expected) is right


def test_accuracy_is_in_percent_and_needs_answers():
    assert accuracy(["a", "b", "", "d"], ["a", "x", "", "d"]) == 50
    for answers, expected in (([], []), (["a"], ["a", "b"])):
        with pytest.raises(ValueError, match="one answer for each"):
            accuracy(answers, expected)


def test_a_stream_refuses_what_cannot_be_learned_or_graded():
    example = Example("q", "a")
    with pytest.raises(ValueError, match="no test examples"):
        Experience("t", (example,), ())
    with pytest.raises(ValueError, match="without an answer"):
        Experience("t", (Example("q"),), (example,))
    with pytest.raises(ValueError, match="got twice: t"):
        Stream.from_tasks([("t", [example], [example])] * 2)
    with pytest.raises(ValueError, match="at least one task"):
        Stream(())


class Parrot(Method):
    """Says the label it saw last: perfect on the newest task, forgets all others."""

    name, title, deployed_bytes = "parrot", "Parrot & <co>", 3

    def __init__(self):
        self.word, self.asked = "", []

    def learn(self, experience, progress=None):
        self.word = experience.train[-1].answer

    def answer(self, examples, progress=None):
        self.asked.append("".join(dict.fromkeys(example.answer for example in examples)))
        return [self.word] * len(examples)


class Mute(Parrot):
    name, title, settles, deployed_bytes = "inducekv", "Mute", True, 0

    def learn(self, experience, progress=None):
        self.word = "b"


def stream(words="abc"):
    return Stream.from_tasks([(f"task {word}", [Example("q", word)], [Example("q", word)] * 2) for word in words])


def test_the_runner_fills_the_matrix_row_by_row():
    parrot, mute = Parrot(), Mute()
    rows = []
    parrots, mutes = run(stream(), [parrot, mute], after_task=lambda t, results: rows.append(results[0].matrix.copy()))
    np.testing.assert_array_equal(parrots.matrix, [[100, NAN, NAN], [0, 100, NAN], [0, 0, 100]])
    np.testing.assert_array_equal(mutes.matrix, [[0, NAN, NAN], [0, 100, NAN], [0, 100, 0]])
    assert parrot.asked == ["a", "ab", "abc"], "all tasks' questions share batches"
    assert mute.asked == ["a", "b", "c"], "answers that never change are asked for once"
    assert parrots.final_answers == [["c", "c"]] * 3
    assert len(mutes.final_answers) == 3
    assert np.isnan(rows[0][1:]).all(), "after_task sees only what was measured"
    assert parrots.deployed_bytes == 3
    figures = parrots.to_dict()
    assert (figures["avg"], figures["last"], figures["forgetting"]) == (
        pytest.approx(61.111),
        pytest.approx(33.333),
        100,
    )
    assert figures["matrix"][0] == [100, None, None]
    with pytest.raises(ValueError, match="different names"):
        run(stream(), [parrot, parrot])


class Told(Parrot):
    """Is told the label; what it answers for a task never changes."""

    name, sees_task_labels, settles = "told", True, True

    def answer(self, examples, progress=None, task=None):
        super().answer(examples)
        return [task.removeprefix("task ")] * len(examples)


def test_answers_that_are_settled_stay_without_being_asked_for_again():
    told = Told()
    (result,) = run(stream(), [told], ahead=True)
    np.testing.assert_array_equal(result.matrix, [[100, NAN, NAN], [100, 100, NAN], [100, 100, 100]])
    assert told.asked == ["a", "b", "c"]
    assert result.final_answers == [["a"] * 2, ["b"] * 2, ["c"] * 2]
    assert len(result.answer_of_task) == 3


class Reference(Parrot):
    name, reference = "reference", True


@pytest.mark.parametrize(
    "evaluate, kind, asked",
    [
        ("diagonal+last", Parrot, ["a", "b", "abc"]),
        ("diagonal+last", Reference, ["abc"]),
        ("diagonal+last", Told, ["a", "b", "c"]),
        ("last", Parrot, ["abc"]),
        ("last", Told, ["a", "b", "c"]),
    ],
)
def test_only_the_cells_that_are_wanted_are_asked(evaluate, kind, asked):
    method, every = kind(), kind()
    (result,), (whole,) = run(stream(), [method], evaluate=evaluate, ahead=True), run(stream(), [every])
    assert method.asked == asked
    np.testing.assert_array_equal(result.matrix[-1], whole.matrix[-1])
    measured = ~np.isnan(result.matrix)
    np.testing.assert_array_equal(result.matrix[measured], whole.matrix[measured])
    assert (result.final_answers, result.scores) == (whole.final_answers, whole.scores)
    for said, before in zip(result.diagonal_answers, whole.diagonal_answers, strict=True):
        assert said in ([], before)
    assert result.diagonal_answers[-1] == whole.diagonal_answers[-1]
    figures, full = result.to_dict(), whole.to_dict()
    assert figures["last"] == full["last"]
    if evaluate == "diagonal+last" and kind is Parrot:
        assert (figures["forgetting"], figures["avg"]) == (full["forgetting"], None)
    if measured[np.tril_indices(3)].sum() == 3:
        assert figures["forgetting"] is None


@settings(deadline=None)
@given(st.integers(2, 6), st.randoms(use_true_random=False))
def test_figures_need_no_more_cells_than_they_say(tasks, random):
    matrix = metrics.empty_matrix(tasks)
    for t in range(tasks):
        matrix[t, : t + 1] = [random.uniform(0, 100) for _ in range(t + 1)]
    ends = np.where(np.eye(tasks, dtype=bool) | (np.arange(tasks)[:, None] == tasks - 1), matrix, NAN)
    for figure in (metrics.last, metrics.just_learned, metrics.backward_transfer):
        assert figure(ends) == pytest.approx(figure(matrix))
    assert metrics.forgetting(ends) == pytest.approx(-metrics.backward_transfer(matrix))
    alone = metrics.empty_matrix(tasks)
    alone[-1] = matrix[-1]
    assert metrics.last(alone) == pytest.approx(metrics.last(matrix))
    for figure in (metrics.just_learned, metrics.backward_transfer, metrics.forgetting, metrics.average):
        assert metrics.figure_or_none(figure, alone) is None


def test_no_more_questions_are_asked_at_once_than_memory_should_hold(monkeypatch):
    monkeypatch.setattr("inducekv.continual.runner.TOGETHER", 4)  # two tasks' questions
    parrot = Parrot()
    (result,) = run(stream("abcde"), [parrot])
    assert parrot.asked == ["a", "ab", "ab", "c", "ab", "cd", "ab", "cd", "e"]
    monkeypatch.setattr("inducekv.continual.runner.TOGETHER", 1)  # less than one task's, which is not cut
    alone = Parrot()
    (same,) = run(stream("abcde"), [alone])
    assert alone.asked[-5:] == list("abcde")
    np.testing.assert_array_equal(result.matrix, same.matrix)
    assert result.final_answers == same.final_answers


def test_questions_asked_ahead_share_batches_and_stay_out_of_the_answers():
    parrot = Parrot()
    (result,) = run(stream(), [parrot], ahead=True)
    np.testing.assert_array_equal(result.matrix, [[100, 0, NAN], [0, 100, 0], [0, 0, 100]])
    assert parrot.asked == ["ab", "abc", "abc"]
    assert result.final_answers == [["c", "c"]] * 3


def test_the_page_is_whole_in_itself(tmp_path):
    pytest.importorskip("matplotlib")
    from inducekv.continual.report import results_object, write_report

    results = run(stream(), [Parrot(), Mute()])
    figures = results_object(5, 2**18, stream().tasks, results)
    red = Image.new("RGB", (8, 8), "red")
    source = ShownSource("id-1", "task a", 0.75, 0.125, "<b>q</b>", "<script>alert(1)</script>", (red,))
    answered = [
        AnsweredQuestion("task a", "q?", "a", "a", (red,), (source,)),
        AnsweredQuestion("task b", "q?", "b", "", (), ()),
    ]
    page = write_report(tmp_path / "report", figures, results, answered, title="A & B", when="now", questions=6)
    text = page.read_text(encoding="utf-8")
    assert json.loads((tmp_path / "report" / "results.json").read_text()) == figures
    assert figures["methods"]["parrot"]["last"] == pytest.approx(33.333)
    assert (tmp_path / "report" / "accuracy-matrices.png").read_bytes().startswith(b"\x89PNG")
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "Parrot &amp; &lt;co&gt;" in text
    outside = re.findall(r"""(?:src|href|url\(|@import)\s*=?\s*["'(]?(?!data:|#)(\w+:[^"')\s]+)""", text)
    assert [link for link in outside if not link.startswith("data:")] == []
    assert "<link" not in text
    assert "α 0.75<br>mass 0.12" in text


@pytest.mark.parametrize(
    "right, shown",
    [("yyyyyyyyyyyy", [0, 4, 8]), ("yyyyynyyyyyy", [0, 6, 5]), ("nnnn", [0, 1, 2]), ("yn", [0, 1]), ("y", [0])],
)
def test_the_gallery_spreads_over_the_test_and_hides_no_failure(right, shown):
    test = [Example("q", "a", id=str(index)) for index in range(len(right))]
    answers = ["a" if each == "y" else "b" for each in right]
    assert [int(example.identifier) for example in picked_questions(test, answers, 3)] == shown


@given(
    st.dictionaries(
        st.sampled_from([f"layers.{i}.{kind}" for i in range(3) for kind in ("q_proj", "v_proj", "up_proj")]),
        st.tuples(st.integers(1, 64), st.integers(1, 64)),
        min_size=1,
    ),
    st.integers(0, 20_000),
)
def test_a_lora_never_exceeds_its_bytes(linears, budget):
    cheapest = min(2 * sum(shape) for shape in linears.values())
    if budget < cheapest and len(linears) == 1:
        with pytest.raises(ValueError, match="too small"):
            solve_size(linears, budget)
        return
    try:
        size = solve_size(linears, budget)
    except ValueError:
        assert budget < cheapest
        return
    assert size.nbytes <= budget
    assert size.nbytes == 2 * size.rank * sum(sum(linears[name]) for name in size.modules)
    if len(size.modules) == len(linears) and size.rank < min(min(shape) for shape in linears.values()):
        assert size.nbytes + 2 * sum(map(sum, linears.values())) > budget, "a higher rank would have fitted"
