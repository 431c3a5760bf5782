"""The bench's report: whole in itself, safe whatever results say, and right in its figures."""

import io
import re

import numpy as np
import pytest
from PIL import Image

import bench_fakes
from bench_fakes import result
from inducekv.continual.digests import digest_of

pd = pytest.importorskip("pandas")
pytest.importorskip("matplotlib")

from inducekv.continual.report import tables  # noqa: E402
from inducekv.continual.report.bench import _along_bytes, markdown_text, write_bench_report  # noqa: E402
from inducekv.continual.report.pictures import by_last  # noqa: E402
from inducekv.continual.report.questions import shown_questions  # noqa: E402
from inducekv.continual.report.style import looks  # noqa: E402

EVIL = '<script>alert("$x_1$")</script>|`_*'


def several():
    return [
        result(method, seed, budget, skill, reference=reference, title=title)
        for method, title, reference, skill in (
            ("inducekv", "InduceKV", False, 0.9),
            ("evil", EVIL, False, 0.5),
            ("inducekv/random", "InduceKV, random", False, 0.6),
            ("zero_shot", "Zero-shot", True, 0.1),
        )
        for seed in (0, 1)
        for budget in (2**15, 2**18)
    ]


def test_the_leaderboard_is_the_mean_over_seeds_in_its_order():
    board = tables.leaderboard(several())
    here = board[board["budget"] == 2**18]
    assert here["method"].tolist() == ["inducekv", "evil", "inducekv/random", "zero_shot"]
    lasts = [found.figures()["last"] for found in several() if (found.method, found.budget) == ("inducekv", 2**18)]
    row = here.iloc[0]
    assert (row["last"], row["seeds"]) == (pytest.approx(np.mean(lasts)), 2)
    assert row["error_of_seeds"] == pytest.approx(np.std(lasts, ddof=1) / np.sqrt(2))
    each = tables.runs(several())
    errors = each[(each["method"] == "inducekv") & (each["budget"] == 2**18)]["error_of_questions"]
    assert row["error_of_questions"] == pytest.approx(np.sqrt((errors**2).sum()) / 2)


def test_comparisons_are_with_ours_on_the_same_questions():
    compared = tables.comparisons(several(), draws=200)
    assert set(compared["ours"]) == {"inducekv"}
    row = compared[(compared["method"] == "evil") & (compared["budget"] == 2**18)].iloc[0]
    means = {
        method: np.mean(
            [np.mean(found.scores) for found in several() if (found.method, found.budget) == (method, 2**18)]
        )
        for method in ("inducekv", "evil")
    }
    assert row["difference"] == pytest.approx(100 * (means["inducekv"] - means["evil"]))
    assert row["low"] < row["difference"] < row["high"]
    assert row["seeds"] == 2
    others = [result("inducekv"), result("other", questions="another stream")]
    assert tables.comparisons(others, draws=50).empty, "other questions cannot be paired"


def test_the_page_is_whole_in_itself_and_escapes_what_it_is_given(tmp_path):
    page = write_bench_report(tmp_path / "report", several())
    text = page.read_text(encoding="utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "<link" not in text
    sources = re.findall(r"""(?:src|href)=["']([^"']*)""", text)
    assert sources
    assert all(source.startswith(("data:image/png;base64,", "#")) for source in sources)
    assert len(re.findall('class="plot"', text)) == 4
    for name in ("leaderboard", "runs", "comparisons"):
        assert len(pd.read_csv(tmp_path / "report" / f"{name}.csv"))
    pictures = sorted((tmp_path / "report" / "pictures").rglob("*.png"))
    assert len(pictures) == 4
    for path in pictures:
        image = np.asarray(Image.open(io.BytesIO(path.read_bytes())).convert("L"))
        assert image.std() > 10, f"{path.name} is blank"


def test_markdown_names_its_pictures_and_escapes_text(tmp_path):
    write_bench_report(tmp_path, several())
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    for target in re.findall(r"!\[[^]]*\]\(([^)]*)\)", text):
        assert (tmp_path / target).is_file()
    assert "<script" not in text
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    columns = {len(re.findall(r"(?<!\\)\|", line)) for line in rows}
    assert len(columns) == 1, "no text breaks the table"
    assert markdown_text("a|b\n*c*") == r"a\|b \*c\*"


def test_one_run_of_one_task_can_be_reported(tmp_path):
    small = result(
        tasks=["only"],
        sizes=[10],
        graders=["exact"],
        matrix=np.array([[40.0]]),
        **{name: [1] for name in ("deployed_bytes", "training_bytes")},
        **{name: [1.0] for name in ("learn_seconds", "answer_seconds")},
        **{name: [["a"] * 10] for name in ("final", "diagonal")},
        scores=[[1.0] * 4 + [0.0] * 6],
        clusters=[[0] * 10],
    )
    assert write_bench_report(tmp_path, [small]).is_file()


def test_a_method_looks_the_same_in_every_picture():
    everything = looks([("b", False), ("inducekv", False), ("zero_shot", True), ("a", False)], ["zero_shot", "a"])
    alone = looks([("a", False), ("inducekv", False)], ["zero_shot", "a"])
    assert everything["a"] == alone["a"]
    assert everything["inducekv"] == alone["inducekv"]
    assert len({look.colour for look in everything.values()}) == 4
    assert list(by_last(several())) == ["inducekv", "evil", "inducekv/random", "zero_shot"]


def test_questions_are_shown_only_of_the_very_stream_that_was_asked(monkeypatch):
    stream = bench_fakes.small_stream(tests=10)
    monkeypatch.setattr("inducekv.continual.streams.stream_named", lambda *_, **__: stream)
    right = [result(method, questions=digest_of(stream)) for method in ("inducekv", "other")]
    shown = shown_questions(right)
    assert [item.task for item in shown] == [task for task in stream.tasks for _ in range(2)]
    assert [said.title for said in shown[0].said] == [found[0].title for found in by_last(right).values()]
    assert shown[0].images
    assert shown_questions([result("inducekv")]) == []


def test_an_ablation_has_a_line_along_the_bytes_if_it_was_run_at_several_budgets():
    ours = [result("inducekv", budget=budget) for budget in (1000, 2000)]
    swept = [result("inducekv/fast", budget=budget) for budget in (1000, 2000)]
    single = [result("inducekv/random", budget=1000)]
    assert list(_along_bytes([*ours, *swept, *single])) == [*ours, *swept]
    assert _along_bytes(single) == single
