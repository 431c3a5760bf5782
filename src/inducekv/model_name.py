"""Which model a memory says it was learned with. What it says is shown, and followed only where nothing is fetched."""

from typing import TYPE_CHECKING

from inducekv.error_text import message, shown
from inducekv.known_models import KNOWN

if TYPE_CHECKING:
    from inducekv.memory import KVMemory

EMBEDDED = "embedded"
"""Name of the model that ships with the package."""
LOCAL = (EMBEDDED, *KNOWN)
"""Names that a memory may choose: they load what is known and contact nobody that the memory picked."""
FOLDER = "(a folder)"
"""What a memory says of a model that was loaded from a folder, whose path is nobody else's business."""
MODEL, REVISION = "model", "model_revision"


def note_model(memory: "KVMemory", name: str, revision: str | None = None, *, folder: bool = False) -> None:
    """Writes into the memory which model it was learned with.

    Args:
        name: as the Hub has it, or one of `LOCAL`.
        revision: commit that was loaded, where there is one.
        folder: `name` is a path, which is not stored.
    """
    memory.metadata.pop(REVISION, None)
    memory.metadata[MODEL] = FOLDER if folder else name
    if revision and not folder and name not in LOCAL:
        memory.metadata[REVISION] = revision


def chosen_model(given: str | None, memory: "KVMemory | None") -> str:
    """The model to load: the one given, else the memory's if that is a local one, else the one that ships.

    Raises:
        ValueError: none was given, and the memory names another.
    """
    if given:
        return given
    said = None if memory is None else memory.metadata.get(MODEL)
    if said is None or said in LOCAL:
        return said or EMBEDDED
    if said == FOLDER:
        raise ValueError("this memory was learned with a model from a folder; say which: --model FOLDER")
    revision = memory.metadata.get(REVISION) if memory is not None else None
    at = f" (revision {shown(revision)})" if revision else ""
    raise ValueError(
        message(
            f"this memory says that it was learned with the model {shown(said)}{at}; no model is loaded because a "
            "memory says so: if you trust it, name it yourself with --model"
        )
    )
