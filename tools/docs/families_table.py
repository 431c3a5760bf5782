"""The table of supported families."""
from inducekv.families import FAMILIES


def markdown() -> str:
    return "\n".join(f"- {name}" for name in FAMILIES)
