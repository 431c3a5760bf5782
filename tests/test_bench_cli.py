"""inducekv bench: what it lists, runs, reports, checks and refuses."""

import dataclasses
import json

import pytest

import bench_fakes
from commands import refused, run, run_json
from inducekv.cli import bench as command
from inducekv.continual import bench
from inducekv.continual.methods import METHODS
from inducekv.continual.results import read_results, write_result
from inducekv.continual.streams import STREAMS


def test_list_names_every_stream_and_method():
    listed = run_json("bench", "list")
    assert set(listed["streams"]) == set(STREAMS)
    assert set(listed["methods"]) == set(METHODS)
    assert listed["methods"]["zero_shot"]["reference"] is True
    assert [name for name, row in listed["methods"].items() if row["only_named"]] == ["inducekv/all_layers"]
    shown = run("bench", "list").stdout
    assert all(name in shown for name in (*STREAMS, *METHODS))


@pytest.fixture
def _fakes(monkeypatch):
    for name in ("METHODS", "make_method", "stream_named"):
        monkeypatch.setattr(bench, name, getattr(bench, name))
    bench_fakes.install()
    monkeypatch.setattr(command, "_backbone", lambda *_: bench_fakes.backbone())
    monkeypatch.setattr("inducekv.continual.methods.METHODS", bench.METHODS)
    monkeypatch.setitem(STREAMS, "fake", STREAMS["folder"])  # whatever it is: `stream_named` is a fake


def test_run_covers_methods_budgets_and_seeds(tmp_path, _fakes):
    arguments = ("bench", "run", "fake", "--methods", "echo,oracle", "--budget", "1KiB,2KiB", "--seeds", "0,1")
    first = run(*arguments, "--results", tmp_path)
    assert first.exit_code == 0, first.output
    runs = {(found.method, found.budget, found.seed) for found in read_results(tmp_path)}
    assert runs == {(m, b, s) for m in ("parrot", "echo", "oracle") for b in (1024, 2048) for s in (0, 1)}
    assert "12 results in" in first.stdout
    again = run(*arguments, "--results", tmp_path)
    assert again.stdout.count("done before") == 8
    quiet = run(*arguments, "--results", tmp_path, "--quiet")
    assert (quiet.exit_code, quiet.stdout) == (0, "")
    told = run_json(*arguments, "--results", tmp_path)
    assert told["results"] == str(tmp_path) and len(told["written"]) == 12 and not told["left_out"]


def test_an_unfinished_run_of_other_settings_is_refused_until_it_is_restarted(tmp_path, _fakes, monkeypatch):
    arguments = ("bench", "run", "fake", "--methods", "parrot", "--results", tmp_path)
    learn = bench_fakes.Parrot.learn

    def stop(self, experience, progress=None):
        if experience.position == 2:
            raise OSError("the disk is full")
        learn(self, experience, progress)

    with monkeypatch.context() as patched:
        patched.setattr(bench_fakes.Parrot, "learn", stop)
        refused(run(*arguments), "the disk is full")
    refused(run(*arguments, "--no-ahead"), "other settings (ahead True, now False)", "--restart")
    assert run(*arguments, "--no-ahead", "--restart").exit_code == 0
    assert read_results(tmp_path)[0].settings["ahead"] is False


def test_all_methods_are_those_that_need_not_be_named(tmp_path, _fakes):
    bench.METHODS["oracle"] = dataclasses.replace(bench.METHODS["oracle"], only_named=True)
    for methods, expected in (("all", {"parrot", "echo"}), ("oracle", {"oracle"})):
        done = run("bench", "run", "fake", "--methods", methods, "--results", tmp_path / methods)
        assert done.exit_code == 0, done.output
        assert {found.method for found in read_results(tmp_path / methods)} == expected


def test_run_takes_several_streams_and_patterns(tmp_path, _fakes):
    done = run("bench", "run", "embedded/*", "fake", "embedded/v*", "--methods", "parrot", "--results", tmp_path)
    assert done.exit_code == 0, done.output
    assert {found.stream for found in read_results(tmp_path)} == {"fake", *(n for n in STREAMS if n[:9] == "embedded/")}


def test_no_stream_is_run_where_one_is_unknown(tmp_path, _fakes):
    for name in ("nothing/*", "nowhere"):
        mistaken = run("bench", "run", "fake", name, "--methods", "parrot", "--results", tmp_path / "none")
        refused(mistaken, f"unknown stream '{name}'", "folder")
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("--methods", "x"), "no method 'x'; known: zero_shot"),
        (("--methods", ","), "--methods needs at least one value"),
        (("--budget", "much"), "cannot read 'much' as a size"),
        (("--seeds", "1,b"), "--seeds must be whole numbers, comma-separated, got '1,b'"),
        (("--seeds", "-1"), "--seeds must not be negative"),
    ],
)
def test_run_refuses_what_makes_no_sense(tmp_path, arguments, said):
    refused(run("bench", "run", "embedded/task", "--results", tmp_path, *arguments), said)


def test_run_refuses_an_unknown_stream(tmp_path):
    refused(run("bench", "run", "nowhere", "--methods", "zero_shot", "--results", tmp_path), "nowhere", "embedded/task")


def test_a_budget_too_small_for_all_is_an_error(tmp_path, _fakes):
    result = run("bench", "run", "fake", "--methods", "parrot", "--budget", "5", "--results", tmp_path)
    assert result.exit_code == 2
    assert "raise --budget" in result.stderr


def test_report_of_a_folder(tmp_path):
    pytest.importorskip("matplotlib")
    pytest.importorskip("pandas")
    for method in ("inducekv", "other"):
        write_result(tmp_path, bench_fakes.result(method))
    page = run_json("bench", "report", tmp_path)["page"]
    assert page == str(tmp_path / "report" / "index.html")
    again = run("bench", "report", tmp_path, "--output", tmp_path / "elsewhere")
    assert "2 results" in again.stdout
    assert (tmp_path / "elsewhere" / "report.md").is_file()


def test_report_refuses_what_it_cannot_read(tmp_path):
    refused(run("bench", "report", tmp_path / "none"), "no folder of results")
    (tmp_path / "x.json").write_text("{}")
    refused(run("bench", "report", tmp_path), "x.json", "not a result")


def test_check(tmp_path):
    assert run("bench", "check", "embedded/task").stdout == "embedded/task: complete\n"
    refused(run("bench", "check", "nowhere"), "no stream 'nowhere'; known: embedded/task")
    rooted = [name for name, kind in STREAMS.items() if kind.needs_root]
    for name in rooted:
        refused(run("bench", "check", name), "give its folder with --root")
        result = run("bench", "check", name, "--root", tmp_path, "--json")
        assert result.exit_code == 1, f"{name} is complete in an empty folder"
        assert json.loads(result.stdout)["problems"]


@pytest.mark.slow
def test_a_small_part_of_the_bench_on_the_embedded_model(tmp_path):
    """Two streams, four methods, few examples: what runs in continuous integration."""
    pytest.importorskip("peft")
    methods = "zero_shot,nearest_neighbour,inducekv,sequential_lora"
    for stream in ("embedded/task", "embedded/domain"):
        done = run(
            "bench", "run", stream, "--methods", methods, "--limit", 6, "--no-ahead", "--results", tmp_path, "-q"
        )
        assert done.exit_code == 0, done.output
    found = {(result.stream, result.method): result for result in read_results(tmp_path)}
    assert len(found) == 8
    for (_, method), result in found.items():
        assert result.deployed_bytes[-1] <= 2**18
        assert result.ledger["deployed"] == result.deployed_bytes[-1], method
    last = {key: result.figures()["last"] for key, result in found.items()}
    assert last["embedded/task", "inducekv"] > last["embedded/task", "zero_shot"] + 20
    assert run("bench", "report", tmp_path).exit_code == 0
