"""What is imported when: commands that need no model must not wait for the libraries that models need."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import inducekv
from inducekv import compression, tuning
from inducekv.continual.catalogue import CATALOGUE
from inducekv.continual.methods import METHODS

GOLDEN = Path(__file__).parent / "golden" / "memory"
HEAVY = ("torch", "transformers", "sklearn", "scipy", "pandas", "matplotlib", "peft")


def loaded_by(code: str) -> set[str]:
    """Those of the large libraries that a fresh process has imported after running `code`."""
    ending = f"\nfinally:\n import sys; print('|', *(m for m in {HEAVY} if m in sys.modules))"
    program = "try:\n" + "\n".join(f" {line}" for line in code.splitlines()) + ending
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert "|" in result.stdout and "Error" not in result.stderr, result.stderr
    return set(result.stdout.rpartition("|")[2].split())


def command(*arguments: object) -> str:
    words = [str(argument) for argument in arguments]
    return f"from inducekv.cli import app\napp({words!r})"


@pytest.mark.parametrize(
    "arguments",
    [(), ("--help",), ("--version",), ("learn", "--help"), ("bench", "list"), ("bench", "list", "--json")],
    ids=" ".join,
)
def test_help_and_lists_import_nothing_large(arguments: tuple[str, ...]) -> None:
    assert loaded_by(command(*arguments)) == set()


def test_the_package_itself_imports_nothing_large() -> None:
    assert loaded_by("import inducekv\ndir(inducekv)\nfrom inducekv import Example, InduceKVConfig") == set()
    assert loaded_by("from inducekv.continual.streams import STREAMS") == set()


@pytest.mark.parametrize("name", ["inspect", "forget"])
def test_a_memory_is_read_and_rewritten_without_transformers(name: str, tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "memory")
    more = ("--task", "birds") if name == "forget" else ()
    assert loaded_by(command(name, tmp_path / "memory", *more)) <= {"torch"}


@pytest.mark.parametrize("module", [inducekv, compression, tuning], ids=lambda module: module.__name__)
def test_every_public_name_is_found_where_it_is_said_to_be(module: object) -> None:
    for name in module.__all__:  # type: ignore[attr-defined]
        assert getattr(module, name) is not None
        assert name in dir(module)
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        module.nothing  # type: ignore[attr-defined]  # noqa: B018


def test_the_catalogue_says_of_methods_what_they_say_of_themselves() -> None:
    assert list(CATALOGUE) == list(METHODS)
    for name, listed in CATALOGUE.items():
        method = METHODS[name].method
        assert listed.reference is method.reference, name
        if name == method.name:
            assert listed.title == method.title
