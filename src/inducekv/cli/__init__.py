"""The `inducekv` command."""

from __future__ import annotations

import os

import typer

os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # its advice to programmers is noise to users of a command

from inducekv.cli import bench, check, demo, doctor, evaluate, memories, models, tune

app = typer.Typer(
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
