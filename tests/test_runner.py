"""Passes of the bench: measured alike however often they are interrupted, and never run twice."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import bench_fakes
from inducekv.continual import bench
from inducekv.continual.bench import Bench, Pass, Settings, grouped, passes
from inducekv.continual.digests import clusters_of
from inducekv.continual.graders import EXACT
from inducekv.continual.graders.base import PerAnswer
from inducekv.continual.methods.training import TrainingDiverged
from inducekv.continual.metrics import empty_matrix
from inducekv.continual.provenance import commit, forget_peak, peak_memory, versions
from inducekv.continual.results import ResultError, read_result, read_results
from inducekv.continual.runner import MethodResult, run
from inducekv.continual.stream import Experience, Stream, TaskLabelHidden
from inducekv.examples import Example

NAN = float("nan")
ONE = Pass("fake", ("parrot", "echo"), 1000, 0)


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
    for name in ("METHODS", "make_method", "stream_named"):
        monkeypatch.setattr(bench, name, getattr(bench, name))
    bench_fakes.install()


def runner(folder, said=None, **settings):
    return Bench(folder, bench_fakes.backbone, Settings(**settings), say=(said if said is not None else []).append)


def test_passes_put_methods_with_their_partner():
    assert grouped(["echo", "oracle", "echo"]) == [("parrot", "echo"), ("oracle",)]
    todo = list(passes("fake", ["oracle", "parrot"], [20, 10, 20], [1, 0]))
    assert [(one.methods[0], one.budget, one.seed) for one in todo[:3]] == [
        ("oracle", 10, 1),
        ("parrot", 10, 1),
        ("oracle", 20, 1),
    ]
    assert len(todo) == 8
    with pytest.raises(ValueError, match="no method 'x'; known: parrot"):
        grouped(["x"])


def test_a_pass_writes_what_was_measured(tmp_path):
    said = []
    paths = runner(tmp_path, said).run(ONE)
    parrot, echo = map(read_result, paths)
    expected = empty_matrix(4)
    expected[np.tril_indices(4)] = 0
    expected[(0, 1, 2), (1, 2, 3)] = 0
    np.fill_diagonal(expected, 100)
    np.testing.assert_array_equal(parrot.matrix, expected)
    np.testing.assert_array_equal(echo.matrix, expected)
    assert (parrot.deployed_bytes, parrot.ledger) == ([4, 5, 4, 4], {"deployed": 4, "training": 0})
    assert parrot.final == [["quon"] * 3] * 4
    assert parrot.diagonal == [[word] * 3 for word in bench_fakes.WORDS]
    assert parrot.scores == [[0.0] * 3] * 3 + [[1.0] * 3]
    assert parrot.figures()["bwt"] == -100
    assert parrot.graders == ["exact"] * 4
    assert parrot.settings == dataclasses.asdict(Settings().on({}))
    assert {
        "model": "embedded",
        "max_new_tokens": 32,
        "ahead": True,
        "evaluate": "all",
    }.items() <= parrot.settings.items()
    assert parrot.peak_memory["rss"] > 10**7
    assert (echo.reference, echo.title) == (True, "Echo")
    assert not list((tmp_path / ".work").rglob("*.json")), "what is finished leaves no state behind"
    assert "Last 25.0 %" in said[0]


def test_a_finished_pass_is_not_run_again(tmp_path, monkeypatch):
    paths = runner(tmp_path).run(ONE)
    before = [path.read_bytes() for path in paths]
    monkeypatch.setattr(bench, "make_method", lambda *_, **__: pytest.fail("ran again"))
    said = []
    assert runner(tmp_path, said).run(ONE) == paths
    assert [path.read_bytes() for path in paths] == before
    assert "done before" in said[0]


def test_a_result_of_another_configuration_is_told_of_and_counts_as_done(tmp_path, monkeypatch):
    described = {"entries": 7, "rank": 4, "temperature": 0.07, "layers": [1, 2]}
    monkeypatch.setattr(bench_fakes.Parrot, "describe", lambda self: described)
    monkeypatch.setattr(bench_fakes.Parrot, "decided_by_learning", ("entries",))
    parrot, echo = paths = runner(tmp_path).run(ONE)
    before = [path.read_bytes() for path in paths]
    described = {"entries": 0, "new": 1, "temperature": 0.035, "layers": (1, 2)}
    said, alike = [], Pass("fake", ("oracle",), 1000, 0)
    bench = runner(tmp_path, said)
    assert bench.run(ONE) == paths
    assert len(said) == 1, "the model is not loaded for this alone"
    assert bench.run(alike)
    changed = "was made with another configuration (temperature 0.07, now 0.035); delete it to run it again"
    assert said[1:3] == [f"{parrot} {changed}", f"{echo} {changed}"]
    assert bench.run(ONE) == paths and len(said) == 4 + 3, "once loaded, it is told at once"
    assert bench.run(alike) and len(said) == 4 + 3 + 1
    assert [path.read_bytes() for path in paths] == before
    parrot.unlink()
    assert bench.run(ONE) == paths and json.loads(parrot.read_text())["config"]["temperature"] == 0.035


def test_a_finished_result_whose_method_is_left_out_by_now_is_told_of(tmp_path, monkeypatch):
    one, said = Pass("fake", ("parrot",), 1000, 0), []
    runner(tmp_path).run(one)
    made = bench.make_method

    def picky(name, backbone, *, budget, **options):
        return made(name, backbone, budget=5 if budget == 1000 else budget, **options)

    monkeypatch.setattr(bench, "make_method", picky)
    started = runner(tmp_path, said)
    assert started.run(one) and started.run(Pass("fake", ("parrot",), 2000, 0))
    assert "would be left out now, a budget of 5 bytes is too small" in said[1]
    assert not started.left_out


def test_results_of_other_settings_are_not_taken_for_these(tmp_path):
    runner(tmp_path).run(ONE)
    with pytest.raises(ResultError, match=r"made with .*give another --results folder"):
        runner(tmp_path, limit=5).run(ONE)


def test_a_budget_too_small_is_left_out(tmp_path):
    said = []
    assert runner(tmp_path, said).run(Pass("fake", ("parrot",), 5, 0)) == []
    assert "left out, a budget of 5 bytes is too small" in said[0]


@pytest.mark.parametrize("changed", [False, True])
def test_an_interrupted_run_goes_on_and_is_refused_where_its_method_is_configured_otherwise(
    tmp_path, monkeypatch, changed
):
    learn = bench_fakes.Parrot.learn

    def stop(self, experience, progress=None):
        if experience.position == 2:
            raise KeyboardInterrupt
        learn(self, experience, progress)

    one, said = Pass("fake", ("parrot",), 1000, 0), []
    with monkeypatch.context() as patched:
        patched.setattr(bench_fakes.Parrot, "learn", stop)
        with pytest.raises(KeyboardInterrupt):
            runner(tmp_path).run(one)
    if changed:
        with monkeypatch.context() as patched:
            patched.setattr(bench_fakes.Parrot, "describe", lambda self: {"learning_rate": 0.5})
            with pytest.raises(ResultError, match=r"was made with other settings \(other configs\) and was left as it"):
                runner(tmp_path).run(one)
    assert runner(tmp_path, said).run(one)
    assert any("going on after task 2" in line for line in said), "refusing deleted nothing"


def test_training_that_diverges_gives_no_result_and_the_others_go_on(tmp_path, monkeypatch):
    def diverge(self, experience, progress=None):
        raise TrainingDiverged("parrot: after 3 of 9 steps the loss is nan")

    said = []
    bench = runner(tmp_path, said)
    with monkeypatch.context() as patched:
        patched.setattr(bench_fakes.Parrot, "learn", diverge)
        assert bench.run(Pass("fake", ("parrot",), 1000, 0)) == []
    assert said == bench.left_out and "no result, parrot: after 3 of 9 steps the loss is nan" in said[0]
    assert bench.run(Pass("fake", ("oracle",), 1000, 0))


def test_without_asking_ahead_cells_above_the_diagonal_stay_empty(tmp_path):
    (path, _) = runner(tmp_path, ahead=False).run(ONE)
    assert np.isnan(read_result(path).matrix[np.triu_indices(4, 1)]).all()


def test_an_oracle_gets_labels_and_is_not_asked_ahead(tmp_path):
    (path,) = runner(tmp_path).run(Pass("fake", ("oracle",), 1000, 0))
    found = read_result(path)
    assert found.matrix[-1].tolist() == [100] * 4
    assert np.isnan(found.matrix[np.triu_indices(4, 1)]).all()


@pytest.mark.parametrize(("asked", "given"), [(None, 128), (7, 7)])
def test_methods_are_told_how_many_questions_to_answer_at_once(tmp_path, monkeypatch, asked, given):
    told = []
    answer = bench_fakes.Parrot.answer

    def counted(self, examples, progress=None, task=None):
        told.append(self.batch_size)
        return answer(self, examples, progress, task)

    monkeypatch.setattr(bench_fakes.Parrot, "answer", counted)
    Bench(tmp_path, bench_fakes.backbone, batch_size=asked).run(Pass("fake", ("parrot",), 1000, 0))
    assert set(told) == {given}
    monkeypatch.setattr(bench, "SMALL", 0)
    told.clear()
    Bench(tmp_path, bench_fakes.backbone).run(Pass("fake", ("parrot",), 1001, 0))
    assert set(told) == {32}


KILLED = """
import sys
sys.path.insert(0, {tests!r})
import bench_fakes
from pathlib import Path
from inducekv.continual.bench import Bench, Pass, Settings
bench_fakes.install()
Bench(Path({folder!r}), bench_fakes.backbone, Settings(), say=print).run(Pass("fake", ("parrot", "echo"), 1000, 0))
"""


def start(folder, **environment):
    script = KILLED.format(tests=str(Path(__file__).parent), folder=str(folder))
    return subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_a_killed_run_goes_on_at_the_task_it_was_at(tmp_path):
    log, folder = tmp_path / "log", tmp_path / "killed"
    for task in (1, 3):
        killed = start(folder, KILL_AT=str(task), LEARNED=str(log))
        assert killed.returncode == -9, killed.stderr
        assert not list(folder.rglob("1000B-0.json")), "nothing unfinished looks like a result"
    finished = start(folder, LEARNED=str(log))
    assert finished.returncode == 0, finished.stderr
    assert "going on after task 3 of 4" in finished.stdout
    assert log.read_text().split() == ["0", "1", "2", "3"], "no task was learned twice"
    start(tmp_path / "whole")
    ours, whole = (read_results(each) for each in (folder, tmp_path / "whole"))
    for one, other in zip(ours, whole, strict=True):
        np.testing.assert_array_equal(one.matrix, other.matrix)
        for name in ("final", "diagonal", "scores", "deployed_bytes", "ledger", "clusters", "questions", "config"):
            assert getattr(one, name) == getattr(other, name), name
        assert len(one.learn_seconds) == 4


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """What a run leaves that was killed in its third task."""
    folder = tmp_path_factory.mktemp("killed")
    assert start(folder, KILL_AT="2").returncode == -9
    return folder


def contents(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


DAMAGES = {
    "": "is damaged",
    "[]": "is damaged",
    '{"format": 1}': "is damaged",
    "[" * 100_000: "is damaged",
    "limit": r"was made with other settings \(limit 3, now None\)",
    "questions": r"was made with other settings \(other questions\)",
    "format": "was made with other settings",
    "states": r"cannot be read \(state of parrot",
    "folder": r"cannot be read \(",
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_an_unfinished_run_that_cannot_be_gone_on_from_is_refused_and_stays(tmp_path, killed, damage):
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    (index,) = (tmp_path / ".work").rglob("run.json")
    content = json.loads(index.read_text())
    if damage == "limit":
        content["identity"]["limit"] = 3
    elif damage == "questions":
        content["identity"]["questions"] = "0" * 64
    elif damage in ("format", "states"):
        content[damage] = "other"
    index.write_text(json.dumps(content) if damage in content or damage in content["identity"] else damage)
    if damage == "folder":
        index.unlink()
        index.mkdir()
    before = contents(tmp_path)
    with pytest.raises(ResultError, match=DAMAGES[damage]) as refused:
        runner(tmp_path).run(ONE)
    assert contents(tmp_path) == before
    assert str(refused.value).endswith("or start it anew: the same command with --restart")
    assert len(str(refused.value)) <= 500


def test_a_run_whose_disk_is_away_is_refused_and_goes_on_when_it_is_back(tmp_path, killed, monkeypatch):
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    before, read = contents(tmp_path), Path.read_bytes

    def away(self):
        if self.name == "run.json":
            raise PermissionError(13, "Permission denied")
        return read(self)

    with monkeypatch.context() as patched:
        patched.setattr(Path, "read_bytes", away)
        with pytest.raises(ResultError, match=r"cannot be read \(Permission denied\)"):
            runner(tmp_path).run(ONE)
    assert contents(tmp_path) == before
    said = []
    assert runner(tmp_path, said).run(ONE)
    assert "going on after task 2 of 4" in said[0]


def test_a_run_that_was_given_up_starts_anew_and_finished_ones_stay(tmp_path, killed):
    shutil.copytree(killed, tmp_path, dirs_exist_ok=True)
    other = Pass("fake", ("oracle",), 1000, 0)
    (finished,) = runner(tmp_path).run(other)
    bench.give_up(tmp_path, [ONE, other])
    assert finished.exists() and not list((tmp_path / ".work").rglob("run.json"))
    said = []
    (path, _) = runner(tmp_path, said).run(ONE)
    assert len(said) == 2, "no word of going on"
    assert read_result(path).figures()["last"] == 25


def test_unfinished_states_stay_out_of_git(killed):
    (index,) = (killed / ".work").rglob("run.json")
    assert (index.parents[1] / ".gitignore").read_text() == "*\n"


def test_hidden_labels_are_hidden_from_all_but_oracles():
    class Nosy(bench_fakes.Parrot):
        def learn(self, experience, progress=None):
            self.word = experience.task

    stream = Stream(bench_fakes.small_stream().experiences, "s", task_labels="hidden")
    with pytest.raises(TaskLabelHidden):
        run(stream, [Nosy()])
    assert run(stream, [bench_fakes.Oracle()])[0].matrix[-1].tolist() == [100] * 4


def test_both_graders_are_reported():
    generous = PerAnswer("generous", lambda answer, example: 1.0)
    example = Example("q", "a")
    both = Experience("one", (example,), (example, Example("q", "b")), grader=EXACT, faithful_grader=generous)
    same = Experience("two", (example,), (example,))
    (result,) = run(Stream((both, same)), [bench_fakes.Parrot()])
    np.testing.assert_array_equal(result.matrix, [[50, NAN], [50, 100]])
    np.testing.assert_array_equal(result.faithful, [[100, NAN], [100, 100]])
    assert MethodResult.from_state(json.loads(json.dumps(result.to_state()))).to_dict() == result.to_dict()


def test_questions_about_one_picture_are_one_cluster():
    picture, other = bench_fakes.tiny.picture(1), bench_fakes.tiny.picture(2)
    test = (Example("q1", "a", (picture,)), Example("q2", "a", (picture,)), Example("q1", "a", (other,)))
    blind = (Example("q1", "a"), Example("q2", "a"))
    stream = Stream((Experience("one", test, test), Experience("two", test, (test[1], *blind))))
    assert clusters_of(stream) == [[0, 0, 1], [0, 2, 3]]


def test_provenance():
    assert versions()["torch"]
    found = commit()
    assert found == {} or len(found["commit"]) == 40
    assert commit(Path("/")) == {}
    forget_peak()
    low = peak_memory()["rss"]
    block = np.ones(30_000_000)
    assert peak_memory()["rss"] > low + 0.9 * block.nbytes
