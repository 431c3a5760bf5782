"""The documentation's code runs and prints what the pages say; the site builds strictly and needs no network."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
sys.path.append(str(ROOT / "tools" / "docs"))

import api_pages  # noqa: E402
import bench_tables  # noqa: E402
import blocks  # noqa: E402

from inducekv import check, families  # noqa: E402
from inducekv.continual.methods import METHODS  # noqa: E402
from inducekv.continual.methods.trained import TrainedMethod  # noqa: E402
from inducekv.continual.result_checks import ResultError  # noqa: E402
from inducekv.continual.streams import STREAMS  # noqa: E402

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
RUN = ("python", "console")


def named(page: Path) -> str:
    return str(page.relative_to(ROOT))


@pytest.fixture(autouse=True)
def _tables_kept(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The page on adding a family adds one."""
    monkeypatch.setattr(check, "_CHECKED", {})
    tables = [(table, dict(table)) for table in (families.FAMILIES, families.DECODERS)]
    yield
    for table, before in tables:
        table.clear()
        table.update(before)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks.blocks(p.read_text(encoding="utf-8"))], ids=named)
def test_code_runs_and_prints_what_the_page_says(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for shown in blocks.run_page(page.read_text(encoding="utf-8"), str(page)):
        difference = blocks.difference(shown.expected, shown.got)
        assert difference is None, f"{named(page)}, line {shown.line}:\n{difference}"


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_code_that_is_not_run_says_why(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    found = [block for block in blocks.blocks(text) if block.language in RUN]
    opened = re.findall(rf"^\s*```(?:{'|'.join(RUN)})\b", text, re.MULTILINE)
    assert len(found) == len(opened), "a fence has attributes that the tests do not understand, so it would not be run"
    for block in found:
        assert block.reason is None or len(block.reason.split()) >= 2, (
            f"line {block.line} does not say why it is not run"
        )


def test_a_wrong_page_is_found_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    right = "```python\nprint('one', 1234)\n```\n```text\none 1230\n```\n"
    for page, differs in (
        (right, False),
        (right.replace("1230", "999"), True),
        (right.replace("one 12", "two 12"), True),
    ):
        (shown,) = blocks.run_page(page)
        assert (blocks.difference(shown.expected, shown.got) is not None) == differs
    with pytest.raises(NameError):
        list(blocks.run_page("```python\nmissing\n```\n"))
    with pytest.raises(SyntaxError):
        list(blocks.run_page('```python notest="needs a download"\nno python\n```\n'))
    assert list(blocks.run_page('```python notest="needs a download"\nmissing\n```\n')) == []
    (shown,) = blocks.run_page("```console\n$ inducekv inspect nowhere\nall is well\n```\n")
    assert "no memory in nowhere" in (blocks.difference(shown.expected, shown.got) or "")


@pytest.mark.parametrize(
    ("expected", "got", "alike"),
    [
        ("a\n...\nd\n", "a\nb\nc\nd\n", True),
        ("a\n...\n", "a\nb\n", True),
        ("a\n", "a\nb\n", False),
        ("a\nb\n", "a\n", False),
        ("│ 12 │  x\n", "│  12 │ x\n", True),
        ("took 1,000 bytes\n", "took 1,050 bytes\n", True),
        ("took 1,000 bytes\n", "took 1,200 bytes\n", False),
        ("rope2 v1\n", "rope3 v1\n", False),
        (f"file {'0f' * 16}\n", f"file {'a1' * 16}\n", True),
    ],
)
def test_output_is_compared_loosely_but_is_compared(expected: str, got: str, alike: bool) -> None:
    assert (blocks.difference(expected, got) is None) == alike


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The built site; with `--strict` a broken link, anchor or reference is an error."""
    for needed in ("mkdocs", "material", "mkdocstrings_handlers.python"):
        pytest.importorskip(needed, reason="the site needs inducekv[docs]")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1", "HF_HUB_OFFLINE": "1"}
    built = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    return folder


def test_the_site_needs_no_network(site: Path) -> None:
    remote = re.compile(
        r"""<(?:script|img|iframe)[^>]+src=["']?https?:|<link[^>]+href=["']?https?:|@import\s+["'(]*https?:"""
    )
    for page in [*site.rglob("*.html"), *site.rglob("*.css")]:
        assert not remote.search(page.read_text(encoding="utf-8")), page.name


def test_every_public_module_is_in_the_reference(site: Path) -> None:
    reference = "".join(page.read_text(encoding="utf-8") for page in (site / "api").glob("*.html"))
    for module in api_pages.modules():
        assert f'id="module-{module.replace(".", "-")}"' in reference, module
    for name in ("model.InducedModel.attached", "memory.KVMemory.forget", "config.InduceKVConfig.paper"):
        assert f'id="inducekv.{name}"' in reference, name


def test_the_table_of_families_is_the_table(site: Path) -> None:
    page = (site / "families.html").read_text(encoding="utf-8")
    for name in families.FAMILIES:
        assert f"<code>{name}</code>" in page, name
    assert "<!-- generated" not in page
    assert "flash_attention_2" in page and "untested" in page


def test_the_tables_of_the_bench_are_the_tables(tmp_path: Path) -> None:
    for name in METHODS:
        assert f"| `{name}` |" in bench_tables.methods(), name
        is_trained = issubclass(METHODS[name].method, TrainedMethod)
        assert (f"| `{name}` |" in bench_tables.recipes()) == is_trained, name
    for name in STREAMS:
        assert f"| `{name}` |" in bench_tables.streams(), name
    assert "no results" in bench_tables.results(tmp_path)
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(ResultError):
        bench_tables.results(tmp_path)
