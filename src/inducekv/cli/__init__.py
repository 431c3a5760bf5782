"""The `inducekv` command."""

from __future__ import annotations

import os
from typing import Any, NoReturn

import typer
from typer.core import TyperGroup

from inducekv.error_text import cut, message

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its advice to programmers is noise to users of a command

from inducekv.cli import bench, check, demo, doctor, evaluate, memories, models, tune
from inducekv.cli.common import PREFIX, USAGE_ERROR


class _Commands(TyperGroup):
    """Tells a mistake in the arguments as every other error is told: short, and nothing in it steers a terminal."""

    def make_context(self, *args: Any, **kwargs: Any) -> Any:
        try:
            return super().make_context(*args, **kwargs)
        except _UsageError as error:
            _tell(error)

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except _UsageError as error:
            _tell(error)


_UsageError: Any = typer.BadParameter.__bases__[0]  # of click, or of the copy of it that newer versions of typer bring


def _tell(error: Any) -> NoReturn:
    if type(error).__name__ == "NoArgsIsHelpError":
        raise error
    context = getattr(error, "ctx", None)
    command = "inducekv" if context is None else context.command_path
    said = cut(error.format_message(), 300)
    typer.echo(message(f"{said} (see {command} --help)", prefix=PREFIX), err=True)
    raise typer.Exit(USAGE_ERROR) from error


app = typer.Typer(
    cls=_Commands,
    name="inducekv",
    help="Teach a frozen vision-language model from examples, within a fixed number of bytes.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_show_locals=False,
)
for module in (demo, memories, tune, evaluate, check, bench, models, doctor):
    module.register(app)


@app.callback(invoke_without_command=True)
def _version(version: bool = typer.Option(False, "--version", help="Print the version and stop.")) -> None:
    if version:
        from inducekv import __version__

        typer.echo(__version__)
        raise typer.Exit


def main() -> None:
    """Entry point of the console script."""
    app()
