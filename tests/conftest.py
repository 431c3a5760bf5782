"""Shapes and types of every annotated function are checked while the tests run, and only then."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
sys.path.insert(0, str(Path(__file__).parent))

from jaxtyping import install_import_hook

SELF_CHECKING = (
    "bytes",
    "config",
    "examples",
    "picture_openers",
    "pictures",
    "readers",
)  # users' mistakes must reach their own messages
_package = Path(__file__).parents[1] / "src" / "inducekv"
_modules = sorted(
    {path.relative_to(_package).parts[0].removesuffix(".py") for path in _package.glob("*")} - {*SELF_CHECKING}
)
_hook = install_import_hook([f"inducekv.{name}" for name in _modules], "beartype.beartype")  # before the first import

import pytest  # noqa: E402
import torch  # noqa: E402
import transformers  # noqa: E402

import tiny  # noqa: E402


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _versions(record_testsuite_property: Callable[[str, object], None]) -> None:
    """What a report in JUnit's form (`--junitxml`) was made with; the documentation shows it."""
    for name, version in (("transformers", transformers.__version__), ("torch", torch.__version__)):
        record_testsuite_property(name, version)


@pytest.fixture(scope="session")
def llava() -> "tiny.Backbone":
    """A tiny random LLaVA in float64 with its real processor."""
    return tiny.llava()


@pytest.fixture(scope="session")
def qwen() -> "tiny.Backbone":
    """A tiny random Qwen2.5-VL in float64 with a stand-in for the processor that needs torchvision."""
    return tiny.qwen2_5_vl()


@pytest.fixture(scope="session")
def idefics3() -> "tiny.Backbone":
    """A tiny random Idefics3 (the embedded model's architecture) in float64 with its real processor."""
    return tiny.idefics3()


@pytest.fixture(scope="session")
def smollm2() -> "tiny.Backbone":
    """SmolLM2-135M-Instruct, a published model, where it was fetched."""
    from inducekv.known_models import KNOWN

    if not KNOWN["smollm2"].present:
        pytest.skip("SmolLM2 is not on this machine: inducekv models get smollm2")
    return tiny.Backbone.from_pretrained("smollm2")


@pytest.fixture(params=["llava", "idefics3", "qwen"])
def backbone(request: pytest.FixtureRequest) -> "tiny.Backbone":
    """Each of the tiny models in turn."""
    return request.getfixturevalue(request.param)
