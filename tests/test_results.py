"""Result files: written whole, read back the same, and not believed when something is wrong with them."""

import json
import warnings
import zlib
from base64 import b64encode

import numpy as np
import pytest

from bench_fakes import result
from inducekv.continual import metrics, result_checks
from inducekv.continual.results import (
    Result,
    ResultError,
    budget_name,
    read_result,
    read_results,
    result_path,
    safe_path,
    write_result,
)


def test_a_result_is_read_back_as_it_was_written(tmp_path):
    matrix = metrics.empty_matrix(4)
    matrix[np.tril_indices(4)] = np.arange(10) * 7.0
    matrix[0, 1] = 12.5
    written = result(faithful=matrix, peak_memory={"rss": 5, "cuda": 6}, config={"rank": 4})
    path = write_result(tmp_path, written)
    assert path == tmp_path / "fake" / "one" / "inducekv" / "256KiB-0.json"
    found = read_result(path)
    for name in Result.__dataclass_fields__:
        if name in ("matrix", "faithful"):
            np.testing.assert_allclose(getattr(found, name), getattr(written, name), atol=1e-4)
        else:
            assert getattr(found, name) == getattr(written, name), name
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == ["256KiB-0.json"]


def test_a_result_of_fewer_cells_is_read_back_and_shown(tmp_path):
    whole = result()
    matrix = np.full_like(whole.matrix, np.nan)
    matrix[-1] = whole.matrix[-1]
    made = result(matrix=matrix, diagonal=[[], [], [], whole.final[-1]], also={"exact": [None, 0.0, 50.0, 100.0]})
    read = read_result(write_result(tmp_path, made))
    np.testing.assert_array_equal(read.matrix, matrix)
    assert (read.diagonal, read.also) == (made.diagonal, made.also)
    assert read.figures()["last"] == whole.figures()["last"]
    assert read.figures()["forgetting"] is None and read.figures()["avg"] is None
    pytest.importorskip("matplotlib")
    pytest.importorskip("pandas")
    from inducekv.continual.report.bench import write_bench_report

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        page = write_bench_report(tmp_path / "report", [read, result("other")])
    assert "nan" not in page.with_name("report.md").read_text().lower()


def test_figures_of_a_result(tmp_path):
    matrix = metrics.empty_matrix(4)
    matrix[np.tril_indices(4)] = 50.0
    matrix[-1] = [10, 20, 30, 100]
    matrix[(0, 1, 2), (1, 2, 3)] = [5, 10, 15]
    figures = result(matrix=matrix, sizes=[1, 1, 1, 7]).figures(result("zero_shot", matrix=np.full((4, 4), 4.0)))
    assert figures["last"] == 40
    assert figures["last_weighted"] == pytest.approx((10 + 20 + 30 + 700) / 10)
    assert figures["mft"] == pytest.approx((150 + 100) / 4)
    assert figures["bwt"] == pytest.approx(-90 / 3)
    assert figures["bwt_over_t"] == pytest.approx(-90 / 4)
    assert figures["forgetting"] == pytest.approx(30)
    assert figures["fwt"] == pytest.approx(10 - 4)
    assert figures["last_faithful"] is None
    assert result().figures()["fwt"] is None
    assert result(questions="other").figures(result("zero_shot"))["fwt"] is None, "another stream's zero-shot row"


@pytest.mark.parametrize(
    "budget, name", [(2**18, "256KiB"), (2**20, "1MiB"), (1000, "1000B"), (0, "0B"), (2**20 + 1, "1048577B")]
)
def test_budgets_in_file_names_are_exact(budget, name):
    assert budget_name(budget) == name


def test_names_cannot_lead_out_of_the_folder(tmp_path):
    assert safe_path("../../etc/passwd").as_posix() == "_/_/etc/passwd"
    assert safe_path("/a//b").as_posix() == "_/a/_/b"
    assert safe_path("embedded/task").as_posix() == "embedded/task"
    path = result_path(tmp_path, "..", "a b", 1, 0)
    assert path.resolve().is_relative_to(tmp_path.resolve())


def changed(**fields):
    return lambda content: content.update(fields)


def with_predictions(**blocks):
    def change(content):
        content["predictions"] = result_checks.pack({**result_checks.unpack(content["predictions"]), **blocks})

    return change


def bomb(content):
    content["predictions"]["data"] = b64encode(zlib.compress(b" " * (result_checks.MAX_UNPACKED_BYTES + 1))).decode()


@pytest.mark.parametrize(
    "change, said",
    [
        (changed(format="x"), "not a result"),
        (changed(version=2), "reads 1"),
        (changed(complete=False), "not complete"),
        (changed(tasks=[]), "1 to 1000 tasks"),
        (changed(tasks=["a", "a", "b", "c"]), "different names"),
        (changed(sizes=[1, 1, 1, 0]), "sizes"),
        (changed(matrix=[[1]]), "4 rows"),
        (changed(matrix=[[101, None, None, None]] * 4), "matrix"),
        (changed(matrix=[[None] * 4] * 4), "unmeasured cells in its last row"),
        (changed(matrix=[[0] * 4] * 3 + [[0, None, 0, 0]]), "unmeasured cells in its last row"),
        (changed(also=[]), "also"),
        (changed(also={"exact": [1, 2]}), "also"),
        (changed(also={"exact": [1, 2, 3, 101]}), "also"),
        (changed(deployed_bytes=[-1] * 4), "deployed_bytes"),
        (changed(deployed_bytes=[True] * 4), "deployed_bytes"),
        (changed(learn_seconds=["1"] * 4), "learn_seconds"),
        (changed(budget=2.5), "budget"),
        (changed(title=["x"]), "title"),
        (changed(title="x" * 100_001), "at most 100,000"),
        (changed(reference="no"), "reference"),
        (changed(config=[]), "config"),
        (changed(ledger={"deployed": "x"}), "ledger"),
        (lambda content: content.pop("stream"), "missing"),
        (changed(predictions={"encoding": "pickle", "data": ""}), "pickle"),
        (changed(predictions={"encoding": "zlib+base64", "data": "!!!"}), "damaged"),
        (changed(predictions={"encoding": "zlib+base64", "data": "eJw="}), "cut off"),
        (bomb, "268,435,456"),
        (with_predictions(final=[]), "final"),
        (with_predictions(scores=[[2.0] * 10] * 4), "scores"),
        (with_predictions(clusters=[[-1] * 10] * 4), "clusters"),
        (with_predictions(final=[[1] * 10] * 4), "final"),
    ],
)
def test_a_file_that_cannot_be_believed_is_named(tmp_path, change, said):
    path = write_result(tmp_path, result())
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    with pytest.raises(ResultError, match=said) as refused:
        read_result(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("text", ["", "[", "[" * 100_000, '{"a": NaN}', "[]"])
def test_what_is_no_result_is_refused(tmp_path, text):
    (tmp_path / "x.json").write_text(text)
    with pytest.raises(ResultError, match=r"x\.json"):
        read_result(tmp_path / "x.json")


def test_a_huge_file_is_not_read(tmp_path, monkeypatch):
    path = write_result(tmp_path, result())
    monkeypatch.setattr("inducekv.continual.results.MAX_FILE_BYTES", 100)
    with pytest.raises(ResultError, match="at most 100 are allowed"):
        read_result(path)


def test_a_folder_of_results(tmp_path):
    for seed in (0, 1):
        write_result(tmp_path, result(seed=seed))
    (tmp_path / ".work").mkdir()
    (tmp_path / ".work" / "run.json").write_text("{}")
    assert [found.seed for found in read_results(tmp_path)] == [0, 1]
    (tmp_path / "copy.json").write_text((tmp_path / "fake/one/inducekv/256KiB-0.json").read_text())
    with pytest.raises(ResultError, match="second file"):
        read_results(tmp_path)
    (tmp_path / "empty").mkdir()
    for folder in ("none", "empty"):
        with pytest.raises(ResultError, match="inducekv bench run"):
            read_results(tmp_path / folder)
