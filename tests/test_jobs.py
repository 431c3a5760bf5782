"""inducekv bench run --jobs: what passes give side by side and one after another, and that no process stays behind."""

import json
import os
import signal
import time

import pytest

from commands import refused, run, start
from inducekv.continual import jobs
from inducekv.continual.bench import Pass, Settings
from inducekv.continual.results import read_results

QUICK = ("--limit", 2, "--no-ahead", "--max-new-tokens", 4)
COMMAND = ("bench", "run", "embedded/task", "--methods", "zero_shot,inducekv/fast", "--seeds", "0,1", *QUICK)
SAME = ("matrix", "final", "diagonal", "scores", "deployed_bytes", "training_bytes", "ledger", "questions", "config")


@pytest.fixture(scope="module", autouse=True)
def _one_thread():
    """Sums are the same on any number of cores only if as many threads make them."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setenv("OMP_NUM_THREADS", "1")
        yield


@pytest.fixture(scope="module")
def together(tmp_path_factory):
    folder = tmp_path_factory.mktemp("together")
    done = run(*COMMAND, "--results", folder, "--jobs", 2)
    assert done.exit_code == 0, done.output
    return folder, done


@pytest.mark.slow
def test_two_jobs_write_what_one_writes(tmp_path, together):
    folder, done = together
    alone = run(*COMMAND, "--results", tmp_path)
    assert alone.exit_code == 0, alone.output
    one, two = read_results(tmp_path), read_results(folder)
    assert [found.run for found in one] == [found.run for found in two] and len(one) == 4
    for first, second in zip(one, two, strict=True):
        for name in SAME:
            a, b = (json.dumps(found.to_json().get(name, getattr(found, name))) for found in (first, second))
            assert a == b, (first.run, name)
    assert any(answer for found in one for block in found.final for answer in block), "the model says something"

    def told(output):
        lines = output.stdout.replace(str(folder), "").replace(str(tmp_path), "").splitlines()
        return sorted(line.partition(", learned in")[0] for line in lines)

    assert told(alone) == told(done)
    assert not list((folder / ".work").rglob("*.json")), "nothing is left unfinished"


@pytest.mark.slow
def test_what_is_written_is_not_run_again_and_what_is_damaged_is_refused_alike(together):
    folder, _ = together
    files = sorted(folder.rglob("*-?.json"))
    before = [file.read_bytes() for file in files]
    again = run(*COMMAND, "--results", folder, "--jobs", 2)
    assert again.stdout.count("done before") == 4
    assert [file.read_bytes() for file in files] == before
    changed = json.loads(before[0])
    assert changed["method"] == "inducekv/fast"
    changed["config"]["top_k"] += 1
    files[0].write_text(json.dumps(changed))
    files[-1].unlink()
    one = run(*COMMAND, "--results", folder, "--jobs", 2)
    files[0].write_bytes(before[0])
    assert one.stdout.count("done before") == 3 and "zero_shot, 256KiB, seed 1: Last" in one.stdout
    now = changed["config"]["top_k"] - 1
    assert f"{files[0]} was made with another configuration (top_k {now + 1}, now {now}); delete it" in one.stdout
    before[-1] = files[-1].read_bytes()
    files[-1].write_bytes(before[-1][:100])
    try:
        alone, side = (run(*COMMAND, "--results", folder, "--jobs", count) for count in (1, 2))
    finally:
        files[-1].write_bytes(before[-1])
    assert side.exit_code == alone.exit_code == 2
    assert str(files[-1]) in side.stderr and "delete it and run again" in side.stderr
    assert side.stderr == alone.stderr
    assert [file.read_bytes() for file in files] == before


@pytest.mark.slow
def test_a_mistake_met_in_a_process_ends_the_command(tmp_path):
    command = ("bench", "run", "nowhere", "--methods", "zero_shot", "--seeds", "0,1", "--results", tmp_path)
    alone, side = (run(*command, "--jobs", count) for count in (1, 2))
    refused(side, "nowhere", "embedded/task")
    assert side.stderr == alone.stderr


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="needs signals")
@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGKILL])
def test_no_process_outlives_the_command(tmp_path, how):
    """Processes hold the command's output open, so that it ends only when they do."""
    methods = "inducekv,inducekv/all_layers"
    command = start("bench", "run", "embedded/task", "--methods", methods, "--results", tmp_path, "--jobs", 2)
    while not list(tmp_path.rglob("run.json")) and command.poll() is None:
        time.sleep(0.5)
    assert command.poll() is None, "the command should be at its second task"
    command.send_signal(how)
    command.communicate(timeout=120)
    assert command.returncode
    assert not list(tmp_path.rglob("*-0.json"))


def test_budgets_too_small_are_told_of(tmp_path):
    said = []
    one = Pass("embedded/task", ("inducekv/fast",), 5, 0)
    written, left_out = jobs.run_in_processes(tmp_path, [one], 1, Settings(limit=2), say=said.append)
    assert written == []
    assert left_out == said and "left out, " in said[0]


def test_jobs_and_ranks_are_not_mixed(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    result = run("bench", "run", "embedded/task", "--methods", "zero_shot", "--results", tmp_path, "--jobs", 2)
    refused(result, "--jobs 2 within 2 processes", "choose one")


def test_less_than_one_job_is_refused(tmp_path):
    refused(run("bench", "run", "embedded/task", "--results", tmp_path, "--jobs", 0), "--jobs")
    with pytest.raises(ValueError, match="at least one process, got jobs=0"):
        jobs.run_in_processes(tmp_path, [], 0)
