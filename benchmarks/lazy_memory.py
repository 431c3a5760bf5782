"""What does it cost to open a large memory and to retrieve from it, left in its file and read whole?

    python benchmarks/lazy_memory.py [--json] [--entries 100000] [--tokens 4] [--layers 4] [--dtype int8]

Writes a memory of random content (keys of 896 dimensions), then opens it in a process of its own for each way, so that
each peak of resident memory is its own. Seconds are medians; "cold" payloads were not read by this process before
(the system may have them cached), "hot" ones were retrieved just before. Ratios are lazy to eager.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import torch

from inducekv import KVMemory, memory_file
from inducekv.layout import Layout
from inducekv.stored_entries import blocks_of
from inducekv.tensor_file import Block, header_of

KEY_DIM, TOP_K, REPEATS = 896, 8, 50
CHUNK = 2**22


def write(directory: Path, entries: int, tokens: int, layers: int, dtype: str) -> None:
    """A memory of random numbers, without ever holding it."""
    layout = Layout(tuple(range(layers)), kv_heads=2, head_dim=64, key_dim=KEY_DIM)
    text = b"".join(b'["%d","what is this?","number %d"]\n' % (i, i) for i in range(entries))
    blocks = blocks_of(layout, dtype, entries, entries * tokens, len(text))
    header, order = header_of(blocks)
    draw, digest, temporary = np.random.default_rng(0), hashlib.sha256(), directory / "new"
    with temporary.open("wb") as file:
        for part in (header, *(p for name in order for p in content(name, blocks[name], text, tokens, draw))):
            digest.update(part)
            file.write(part)
        size = file.tell()
    name = f"memory-{digest.hexdigest()[:32]}.safetensors"
    temporary.rename(directory / name)
    memory = KVMemory(2**62, layout, dtype, {})
    each = layout.entry_nbytes(tokens, dtype, 0)
    index = {
        "format": memory_file.FORMAT,
        "version": memory_file.VERSION,
        "generation": 1,
        "training_state": None,
        "file": name,
        "size": size,
        "sha256": digest.hexdigest(),
        "budget": memory.budget,
        "nbytes": layout.base_nbytes(["task"]) + entries * each + len(text),
        "entries": entries,
        "payload_dtype": dtype,
        "layout": {"layers": list(layout.layers), "kv_heads": 2, "head_dim": 64, "key_dim": KEY_DIM},
        "tasks": [["task", 0.1]],
        "fingerprint": {},
        "metadata": {},
    }
    index["index_sha256"] = memory_file._index_digest(index)
    (directory / memory_file.INDEX).write_bytes(memory_file._encode(index))


def content(name: str, block: Block, text: bytes, tokens: int, draw: np.random.Generator) -> Iterator[bytes]:
    if name == "text":
        yield text
    elif name == "numbers":
        yield np.tile(np.array([tokens, tokens, 1, 0], dtype=np.int32), (block.shape[0], 1)).tobytes()
    elif name == "calibration":
        yield np.zeros(block.shape, dtype=np.float32).tobytes()
    else:
        for start in range(0, block.nbytes, CHUNK):
            count = min(CHUNK, block.nbytes - start) // block.dtype.itemsize
            numbers = torch.from_numpy(draw.integers(-127, 128, count).astype(np.int8))
            scaled = numbers if block.dtype == torch.int8 else (numbers / 128).to(block.dtype)
            yield scaled.view(torch.uint8).numpy().tobytes()


def rss_mib() -> float:
    """Peak resident memory of this process so far."""
    status = Path("/proc/self/status")
    if status.exists():  # Linux's `ru_maxrss` starts from the parent's peak
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)


def measure(directory: Path, lazy: bool) -> dict[str, float]:
    """In this process: open, then retrieve."""
    before = rss_mib()

    def timed(action: object) -> float:
        start = time.perf_counter()
        action()  # type: ignore[operator]
        return time.perf_counter() - start

    held: list[KVMemory] = []
    result = {"open s": timed(lambda: held.append(KVMemory.from_pretrained(directory, lazy=lazy)))}
    memory = held[0]
    result["open peak MiB"] = rss_mib() - before
    result["keys s"] = timed(memory.keys)
    result["keys peak MiB"] = rss_mib() - before
    draw = torch.Generator().manual_seed(1)
    cold, hot = [], []
    for _ in range(REPEATS):
        chosen = torch.randint(len(memory), (TOP_K,), generator=draw)
        cold.append(timed(lambda chosen=chosen: memory.payloads(chosen)))
        hot.append(timed(lambda chosen=chosen: memory.payloads(chosen)))
    result["top-8 cold ms"], result["top-8 hot ms"] = (1e3 * statistics.median(x) for x in (cold, hot))
    result["thresholds ms"] = 1e3 * statistics.median(timed(memory.threshold_of_entries) for _ in range(5))
    result["peak MiB"] = rss_mib() - before
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one JSON object")
    parser.add_argument("--entries", type=int, default=100_000)
    parser.add_argument("--tokens", type=int, default=4, help="payload tokens of an entry")
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--dtype", default="int8", choices=["float32", "float16", "bfloat16", "int8"])
    parser.add_argument("--open", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--lazy", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.open:
        print(json.dumps(measure(options.open, options.lazy)))
        return
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder)
        write(directory, options.entries, options.tokens, options.layers, options.dtype)
        size = sum(path.stat().st_size for path in directory.iterdir()) / 2**20
        columns = {}
        for name, flags in (("lazy", ["--lazy"]), ("eager", [])):
            command = [sys.executable, __file__, "--open", folder, *flags]
            columns[name] = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
    table = pd.DataFrame(columns)
    table["ratio"] = table["lazy"] / table["eager"]
    if options.json:
        print(json.dumps({"entries": options.entries, "file MiB": size, **table.to_dict()}))
    else:
        print(f"{options.entries:,} entries, {size:,.0f} MiB on disk, keys as float32", end=" ")
        print(f"{4 * KEY_DIM * options.entries / 2**20:,.0f} MiB")
        print(table.round(3).to_string())


if __name__ == "__main__":
    main()
