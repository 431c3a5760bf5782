"""The small model that ships with the package, and the drawn worlds that it is trained and tested on.

`path()` is a folder that `AutoModelForImageTextToText.from_pretrained` and `AutoProcessor.from_pretrained` load like
any other; nothing is
fetched. `tasks` draws tasks whose classes and names the model has never seen.
"""

from pathlib import Path

__all__ = ["path"]


def path() -> Path:
    """Folder of the embedded model's weights, configuration and processor."""
    return Path(__file__).parent / "weights"
