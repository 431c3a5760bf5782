"""A small sample of published text data that ships with the package, for `inducekv demo --text`.

`path()` is a folder with a folder for each of `TASKS`, each with `train.jsonl` and `test.jsonl`, which `read_examples`
reads; `ATTRIBUTION.md` there says whose they are and what was changed.
"""

import shutil
from pathlib import Path

__all__ = ["TASKS", "path", "write_sample"]

ATTRIBUTION = "ATTRIBUTION.md"

TASKS = ("travel-requests", "weather-slots", "bank-requests", "restaurant-slots")
"""Names of the tasks in the order in which the demo learns them. Those that end in "slots" ask for slots."""


def path() -> Path:
    """Folder of the sample."""
    return Path(__file__).parent


def write_sample(folder: Path) -> list[Path]:
    """Copies the sample's tasks with their attribution; returns their folders.

    Args:
        folder: made if needed.

    Raises:
        ValueError: the folder holds something already.
        OSError: it cannot be written.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ValueError(f"{folder} is there already; name a folder that is new or empty")
    for task in TASKS:
        shutil.copytree(path() / task, folder / task)
    shutil.copyfile(path() / ATTRIBUTION, folder / ATTRIBUTION)
    return [folder / task for task in TASKS]
