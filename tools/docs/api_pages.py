"""Pages of the API reference: every public module of the package is on one of them, in the order of its subject."""

from pathlib import Path

PACKAGE = Path(__file__).parents[2] / "src" / "inducekv"

GROUPS: list[tuple[str, str, tuple[str, ...]]] = [
    ("model", "Model and answers", ("model", "answers", "config", "backbone", "lookup")),
    ("examples", "Examples", ("examples", "readers", "rendering", "encoded", "scoring", "splits")),
    (
        "memory",
        "Memory",
        (
            *(
                "memory",
                "memory_config",
                "memory_file",
                "entry",
                "entries",
                "payloads",
                "payload_cache",
                "fingerprint",
                "training_state",
            ),
            *("stored_entries", "entry_table", "table_reader", "tensor_file", "atomic", "bytes"),
        ),
    ),
    (
        "attention",
        "Attention",
        (
            "attention",
            "attachment",
            "calls",
            "attention_masks",
            "injection",
            "retrieval",
            "abstention",
            "rope",
            "cache",
            "check",
        ),
    ),
    ("families", "Families", ("families", "decoder", "devices", "doctor")),
    ("compression", "Compression", ("compression",)),
    ("learning", "Learning", ("learner", "extraction", "ranks", "learn_report", "selection", "tuning")),
    ("continual", "Continual learning", ("continual",)),
    ("embedded", "The embedded model", ("embedded",)),
]
"""Page, title, and the modules and subpackages on it. What is named nowhere goes to the last page."""
NOT_SHOWN = ("cli",)
"""Described by its own page, the command line's."""


def modules() -> list[str]:
    """Dotted names inside the package of all public modules, subpackages without contents of their own left out."""
    names = []
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = list(path.relative_to(PACKAGE).with_suffix("").parts)
        if parts[-1] == "__init__":
            parts.pop()
            if not parts or len(path.read_text(encoding="utf-8").splitlines()) < 3:
                continue
        if not any(part.startswith("_") for part in parts) and parts[0] not in NOT_SHOWN:
            names.append(".".join(parts))
    return names


def pages() -> list[tuple[str, str, str]]:
    """Path, title and Markdown of every page."""
    rest = modules()
    made = []
    for name, title, shown in GROUPS:
        members = [m for wanted in shown for m in rest if m == wanted or m.startswith(f"{wanted}.")]
        rest = [m for m in rest if m not in members]
        if members:
            made.append((name, title, members))
    if rest:
        made.append(("other", "Other modules", rest))
    return [(f"api/{name}.md", title, _page(title, members)) for name, title, members in made]


def _page(title: str, members: list[str]) -> str:
    parts = [f"# {title}\n"]
    for member in members:
        parts.append(f"## inducekv.{member} {{: #module-{member.replace('.', '-')} }}\n")
        parts.append(
            f"::: inducekv.{member}\n    options:\n      show_root_heading: false\n      show_root_toc_entry: false\n"
        )
    return "\n".join(parts)
