"""What all commands share: options, errors, output."""

from __future__ import annotations

import functools
import inspect
import json
import os
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NoReturn, ParamSpec, TypeVar, get_type_hints

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from inducekv import InducedModel, InduceKVConfig, KVMemory

P = ParamSpec("P")
R = TypeVar("R")

USAGE_ERROR = 2
PREFIX = "inducekv: error: "
DEBUG = "INDUCEKV_DEBUG"
EXTRA_OF_MODULE = {**dict.fromkeys(("peft", "matplotlib", "sklearn", "pandas", "accelerate"), "bench"), "gguf": "gguf"}

JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")]
QuietOption = Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only the result.")]
SeedOption = Annotated[int, typer.Option("--seed", min=0, help="Seed of every random draw.")]
MemoryOption = Annotated[Path, typer.Option("--memory", "-m", help="Folder of the memory.")]
ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        help="Model name, folder, GGUF file, or `embedded` (the default). "
        "Needed where the memory was made with another that is not on this machine.",
    ),
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
    text = json.dumps(_finite(value), indent=2, ensure_ascii=False)
    typer.echo("".join(c if c.isprintable() or c == "\n" else json.dumps(c)[1:-1] for c in text))


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


DebugOption = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def helpful(command: Callable[P, R]) -> Callable[P, R]:
    """Turns a user's mistake, or a library's, into one message on standard error and exit code 2.

    With `--debug`, or INDUCEKV_DEBUG=1, the traceback is shown instead.
    """

    @functools.wraps(command)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        debug = bool(kwargs.pop("debug", False)) or bool(os.environ.get(DEBUG))
        if kwargs.get("quiet") or not sys.stderr.isatty():
            os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # before the libraries are first imported
            os.environ.setdefault("TQDM_DISABLE", "1")
        try:
            return command(*args, **kwargs)
        except (typer.Exit, typer.Abort, typer.BadParameter):
            raise
        except Exception as error:
            message = message_of(error)
            if debug or message is None:
                raise
            _fail(message)

    hints = {**get_type_hints(command, include_extras=True), "debug": DebugOption}
    own = inspect.signature(command).parameters.values()
    debug_option = inspect.Parameter("debug", inspect.Parameter.KEYWORD_ONLY, default=False)
    options = [each.replace(annotation=hints[each.name]) for each in (*own, debug_option)]
    wrapper.__signature__ = inspect.Signature(options, return_annotation=hints.get("return"))  # type: ignore[attr-defined]
    wrapper.__annotations__ = hints
    return wrapper


def message_of(error: Exception) -> str | None:
    """What to tell a user of an error; None for a fault of this library, whose traceback is wanted."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        module = error.name.partition(".")[0]
        package = f'"inducekv[{EXTRA_OF_MODULE[module]}]"' if module in EXTRA_OF_MODULE else module
        return f"this command needs {module}; install it with: pip install {package}"
    if isinstance(error, (ValueError, TypeError, OSError)):
        return str(error) or type(error).__name__
    if isinstance(error, MemoryError):
        return f"out of memory; a smaller model, batch or budget needs less {_more(error)}"
    if isinstance(error, RecursionError):
        return f"something in the input is nested too deeply {_more(error)}"
    if isinstance(error, ImportError):
        return f"a library lacks something that this command needs: {_more(error)}"
    origin = type(error).__module__.partition(".")[0]
    if isinstance(error, RuntimeError) or type(error) is Exception or origin not in ("builtins", "inducekv"):
        return f"a library failed: {_more(error)}"
    return None


def _more(error: Exception) -> str:
    said = " ".join(str(error).split())
    said = said if len(said) <= 300 else f"{said[:300]}..."
    return f"{type(error).__name__}{f' ({said})' if said else ''}; --debug shows the traceback"


def _fail(said: str) -> NoReturn:
    from inducekv.error_text import message

    typer.echo(message(said, prefix=PREFIX), err=True)
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
    model: str,
    memory: Path | None,
    config: InduceKVConfig | Mapping[str, Any] | None = None,
    system: str | None = None,
) -> InducedModel:
    """The model by name, folder or GGUF file, with the memory in a folder (None: an empty one).

    Without a `system` text prompts begin with the memory's own, if it was learned with one.

    Raises:
        ValueError: as `InducedModel.from_pretrained`; a model that cannot be had is named.
    """
    from inducekv import InducedModel, KVMemory
    from inducekv.cli.waiting import waiting_for
    from inducekv.named import load_backbone

    waiting_for(f"loading {model}")
    if system is None and memory is not None:
        system = KVMemory.from_pretrained(memory).fingerprint.get("system")
    return InducedModel.from_pretrained(load_backbone(model, system=system), memory=memory, config=config)


def model_of(memory: KVMemory | None, given: str | None) -> str:
    """The model to answer with: the one given, else the memory's if it ships with the package.

    Raises:
        ValueError: the memory names another, which must be given.
    """
    from inducekv.model_name import chosen_model

    return chosen_model(given, memory)


def config_fields(path: Path | None) -> dict[str, Any]:
    """Fields of `InduceKVConfig` from a JSON file; None: none.

    Raises:
        ValueError: as `read_json_object`.
    """
    if path is None:
        return {}
    from inducekv.config import read_fields

    return read_fields(path)
