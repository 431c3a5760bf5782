"""What a result was made with: versions, commit, and the most memory that it took."""

from __future__ import annotations

import platform
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

PACKAGES = ("inducekv", "torch", "transformers", "peft", "numpy", "safetensors", "accelerate")
_STATUS = Path("/proc/self/status")
_CLEAR = Path("/proc/self/clear_refs")


def versions() -> dict[str, Any]:
    """Versions of Python and of the packages that answers depend on, the processor's kind, and the commit."""
    found: dict[str, Any] = {"python": platform.python_version(), "machine": platform.machine()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    if torch.cuda.is_available():
        found["gpu"] = torch.cuda.get_device_name()
    return found | commit()


def commit(package: Path = Path(__file__).parents[1]) -> dict[str, Any]:
    """`commit` of the project's checkout and whether files were `changed` since; empty where it is none."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(package), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=30).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) / "src" / "inducekv" != package.resolve():
            return {}  # installed inside somebody else's repository
        return {"commit": git("rev-parse", "HEAD"), "changed": bool(git("status", "--porcelain", "--", "src"))}
    except (OSError, subprocess.SubprocessError):
        return {}


def forget_peak() -> None:
    """Starts the peak of `peak_memory` anew, where the system can."""
    with suppress(OSError):
        _CLEAR.write_text("5")
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()


def peak_memory() -> dict[str, int]:
    """Most bytes resident since `forget_peak` (`rss`; of the whole process), and most allocated on the GPU (`cuda`)."""
    peak = {"rss": _peak_resident()}
    if torch.cuda.is_available():
        peak["cuda"] = torch.cuda.max_memory_allocated()
    return peak


def _peak_resident() -> int:
    try:
        lines = _STATUS.read_text().splitlines()
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        pass
    try:
        import resource
    except ImportError:  # Windows
        return 0
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024
