"""What mkdocs does before it renders a page: API pages for every public module, tables made from the code, fences."""

import re
import sys
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parents[2]
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tools" / "docs"), str(ROOT / "tests")]

import api_pages  # noqa: E402
import bench_tables  # noqa: E402
import families_table  # noqa: E402

GENERATED = {
    "streams": bench_tables.streams,
    "methods": bench_tables.methods,
    "recipes": bench_tables.recipes,
    "results": bench_tables.results,
    "families": families_table.families,
    "decoders": families_table.decoders,
    "parity": families_table.parity,
}
"""What stands for `<!-- generated: NAME -->` in a page."""
MARK = re.compile(r"<!-- generated: (\w+) -->")
NOT_RUN = re.compile(r'^(```\w+) notest="([^"]+)"$', re.MULTILINE)


def on_config(config: Any) -> Any:
    """Fill the place of the API reference in the navigation."""
    for section in config.nav:
        if "API reference" in section:
            section["API reference"] = [{title: name} for name, title, _ in api_pages.pages()]
    return config


def on_files(files: Files, config: Any) -> Files:
    """Add the pages of the API reference."""
    for name, _, content in api_pages.pages():
        files.append(File.generated(config, name, content=content))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Put generated tables in place, and say of code that the tests do not run why they do not."""
    markdown = MARK.sub(lambda match: GENERATED[match[1]](), markdown)
    return NOT_RUN.sub(r'\1 title="not run by the tests: \2"', markdown)
