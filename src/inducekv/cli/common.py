"""What all commands share: options, errors, output."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec, TypeVar

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from inducekv import InducedModel, InduceKVConfig, KVMemory

P = ParamSpec("P")
R = TypeVar("R")

USAGE_ERROR = 2
EXTRA_OF_MODULE = dict.fromkeys(("peft", "matplotlib", "sklearn", "pandas", "accelerate"), "bench")

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random draw.")]
MemoryOption = Annotated[Path, typer.Option("--memory", "-m", help="Folder of the memory.")]
ModelOption = Annotated[
    str | None,
    typer.Option("--model", help="Model name, folder, or `embedded`; by default the memory's own, else `embedded`."),
]


class _Out(Console):
    """A console that no text can steer."""

    def render_str(self, text: str, **options: Any) -> Text:
        return super().render_str(printable(text), **options)


def out() -> Console:
    """Results go to standard output, taken as they are: no text in them is markup."""
    return _Out(file=sys.stdout, highlight=False, markup=False, emoji=False, soft_wrap=not sys.stdout.isatty())


def printable(text: str) -> str:
    """Text of a model or a memory without what would steer a terminal."""
    return "".join(character if character.isprintable() or character == "\n" else "�" for character in text)


def print_json(value: Any) -> None:
    """One JSON object on standard output; numbers that are not finite become null."""
    typer.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False))


def _finite(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, float) and value not in (float("inf"), float("-inf")) and value == value:
        return value
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return None if isinstance(value, float) else str(value)


def helpful(command: Callable[P, R]) -> Callable[P, R]:
    """Turns a user's mistake into one message on standard error and exit code 2 (a traceback with INDUCEKV_DEBUG=1)."""

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        if kwargs.get("quiet") or not sys.stderr.isatty():
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # before the library is first imported
        try:
            return command(*args, **kwargs)
        except ModuleNotFoundError as error:
            module = (error.name or "").partition(".")[0]
            if module not in EXTRA_OF_MODULE or os.environ.get("INDUCEKV_DEBUG"):
                raise
            _fail(f'this command needs {module}; install it with: pip install "inducekv[{EXTRA_OF_MODULE[module]}]"')
        except (ValueError, TypeError, OSError) as error:
            if os.environ.get("INDUCEKV_DEBUG"):
                raise
            _fail(str(error) or type(error).__name__)

    return wrapper


def _fail(message: str) -> NoReturn:
    from inducekv.error_text import message as shown

    typer.echo(f"inducekv: error: {shown(message)}", err=True)
    raise typer.Exit(USAGE_ERROR)


def require_extra(module: str) -> None:
    """Fails early when an optional dependency is missing.

    Raises:
        ModuleNotFoundError: the module is not installed; `helpful` says which extra has it.
    """
    from importlib.util import find_spec

    if find_spec(module) is None:
        raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def load_model(
    model: str, memory: Path | None, config: InduceKVConfig | Mapping[str, Any] | None = None
) -> InducedModel:
    """The model by name or folder, with the memory in a folder (None: an empty one).

    Raises:
        ValueError: as `InducedModel.from_pretrained`; a model that cannot be had is named.
    """
    from inducekv import InducedModel
    from inducekv.named import load_backbone

    return InducedModel.from_pretrained(load_backbone(model), memory=memory, config=config)


def model_of(memory: KVMemory, given: str | None) -> str:
    """The model to answer with: the one given, else the one the memory was learned with."""
    return given or str(memory.metadata.get("model") or "embedded")


def config_fields(path: Path | None) -> dict[str, Any]:
    """Fields of `InduceKVConfig` from a JSON file; None: none.

    Raises:
        ValueError: as `read_json_object`.
    """
    if path is None:
        return {}
    from inducekv.config import read_fields

    return read_fields(path)
