"""Damaged, forged and interrupted memories: nothing but a clear refusal, or a memory that reads as it should.

    python tools/fuzz_memory.py --mutants 2000 --kills 60 --seed 0

Damaged mutants have bytes changed: each must be refused, or read exactly as before (what was damaged was not read).
Forged ones have their checksums made right again: each must be refused with a `ValueError`, or read, save and load
again like any memory. Kills end a process that learns and forgets with SIGKILL at a random moment: memory and training
state must then be of the same turn, and after a sweep nothing of a forgotten task may be left.
"""

import argparse
import hashlib
import json
import os
import random
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from inducekv.compression.storage import quantise
from inducekv.entry import Entry
from inducekv.error_text import LONGEST_MESSAGE
from inducekv.layout import Layout
from inducekv.memory import KVMemory
from inducekv.memory_config import config_of
from inducekv.memory_file import LOCK, save, stored_state, sweep
from inducekv.memory_index import INDEX, encode, index_digest
from inducekv.retrieval import UNSCALED, Calibration
from inducekv.stored_payload import Payload
from inducekv.training_state import Anchor, TrainingState

LAYOUT = Layout((0, 2), kv_heads=2, head_dim=4, key_dim=8)
FORMATS = ("int8", "float16", "int4")
ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1, 2**31, 2**63, -(2**63), 10**40, 1e308, float("nan"), float("inf"), -0.5),
    *("", " ", "x" * 5000, "\x1b[2J", "\ud800", "../../x", "int8", [], {}, [[]], [None], {"": {}}),
)
"""Values that a forged JSON field gets."""
DEPTHS = (2, 31, 40, 900, 3000)

Outcome = Counter[str]


def entry(number: int, task: str, dtype: str) -> Entry:
    """An entry of made-up numbers."""
    draw = torch.Generator().manual_seed(number)
    parts = [quantise(torch.randn(1 + number % 3, 2, 2, 4, generator=draw), dtype) for _ in range(2)]
    payload = Payload(*(x.values for x in parts), *(x.scales for x in parts), dtype, 4)
    key = torch.nn.functional.normalize(torch.randn(8, generator=draw), dim=-1).half()
    return Entry(f"entry-{number}", task, key, payload, 4, 2, f"what is {number}?", f"answer {number}")


def anchor(number: int, task: str) -> Anchor:
    return Anchor(task, f"{task}/{number}", "what?", "this", (b"picture %d" % number,))


def write_base(folder: Path, dtype: str) -> None:
    """A memory with a training state."""
    memory = KVMemory("1MiB", LAYOUT, dtype, {"architecture": "None", "layers": 3, "rope": {"type": "default"}})
    memory.add_all([entry(i, ("birds", "ships")[i % 2], dtype) for i in range(5)])
    memory.calibration = Calibration(torch.tensor(-2.0), torch.tensor([0.5, UNSCALED]))
    memory.thresholds = {"birds": 0.25}
    memory.metadata = {"reading": '{"top_k":4}', "model": "embedded"}
    save(memory, folder, TrainingState([anchor(i, ("birds", "ships")[i % 2]) for i in range(4)]))


def content(folder: Path, lazy: bool) -> tuple[Any, ...]:
    """All that a memory says. Raises what reading raises."""
    memory = KVMemory.from_pretrained(folder, lazy=lazy)
    numbers = [memory.keys(), memory.threshold_of_entries().nan_to_num(), memory.calibration.tau]
    if len(memory):
        payloads = memory.payloads(torch.arange(len(memory)))
        numbers += [payloads.keys, payloads.values]
    if not all(bool(torch.isfinite(x).all()) for x in numbers):
        raise AssertionError("a memory was read whose numbers are not finite")
    texts = [(e.id, e.task, e.question, e.answer, e.span) for e in memory.entries]
    return texts, [x.numpy().tobytes() for x in numbers], memory.metadata, memory.fingerprint, memory.budget


def examples(folder: Path) -> TrainingState:
    return stored_state(KVMemory.from_pretrained(folder), folder)


# -- mutants


def damaged(data: bytes, draw: random.Random) -> bytes:
    """Bytes changed in one of the ways that disks and copies change them."""
    place, end = sorted(draw.randrange(len(data) + 1) for _ in range(2))
    some = bytearray(data)
    match draw.randrange(6):
        case 0:
            some[draw.randrange(len(data))] ^= 1 << draw.randrange(8)
        case 1:
            del some[place:]
        case 2:
            del some[place:end]
        case 3:
            some[place:end] = bytes(end - place)
        case 4:
            some[place:place] = draw.randbytes(draw.randrange(1, 40))
        case _:
            some[place:end] = some[place:end][::-1]
    return bytes(some)


def forged_value(value: Any, draw: random.Random) -> Any:
    """A JSON value with something changed somewhere inside."""
    if isinstance(value, dict) and value and draw.random() < 0.8:
        fields = dict(value)
        key = draw.choice(sorted(fields))
        match draw.randrange(8):
            case 0:
                del fields[key]
            case 1:
                fields[draw.choice(("extra", "", "\x1b"))] = draw.choice(ODD)
            case _:
                fields[key] = forged_value(fields[key], draw)
        return fields
    if isinstance(value, list) and value and draw.random() < 0.8:
        items = list(value)
        place = draw.randrange(len(items))
        match draw.randrange(5):
            case 0:
                del items[place]
            case 1:
                items.insert(place, items[place])
            case _:
                items[place] = forged_value(items[place], draw)
        return items
    if draw.random() < 0.1:
        deep: Any = draw.choice(ODD)
        for _ in range(draw.choice(DEPTHS)):
            deep = [deep] if draw.random() < 0.5 else {"d": deep}
        return deep
    if isinstance(value, int | float) and draw.random() < 0.5:
        return value + draw.choice((-1, 1, 2, 1000))
    return draw.choice(ODD)


def as_json(value: Any) -> bytes:
    """JSON of anything, whatever its depth and text."""
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(40_000)
    try:
        return json.dumps(value, sort_keys=True, separators=(",", ":")).encode()
    finally:
        sys.setrecursionlimit(limit)


def forged_tensors(data: bytes, draw: random.Random) -> bytes:
    """A safetensors file with another header, or other numbers."""
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    if draw.random() < 0.5:
        return data[: 8 + length] + damaged(body, draw)
    text = as_json(forged_value(header, draw))
    return len(text).to_bytes(8, "little") + text + body


def mutant(folder: Path, draw: random.Random) -> str:
    """Change a folder; returns what kind of change it was."""
    index = json.loads((folder / INDEX).read_bytes())
    tensors, state = folder / index["file"], folder / index["training_state"]["file"]
    kind = draw.choice(("damaged index", "damaged tensors", "damaged state", "index", "index", "tensors", "state"))
    if kind.startswith("damaged"):
        path = {"index": folder / INDEX, "tensors": tensors, "state": state}[kind.split()[1]]
        path.write_bytes(damaged(path.read_bytes(), draw))
        return kind
    if kind == "index":
        for _ in range(draw.randrange(1, 3)):
            index = forged_value(index, draw)
    else:
        path, field = (tensors, "file") if kind == "tensors" else (state, "training_state")
        data = forged_tensors(path.read_bytes(), draw)
        digest = hashlib.sha256(data).hexdigest()
        new = folder / f"{'memory' if kind == 'tensors' else 'training_state'}-{digest[:32]}.safetensors"
        path.unlink()
        new.write_bytes(data)
        if field == "file":
            index |= {"file": new.name, "size": len(data), "sha256": digest}
        else:
            index["training_state"] = {"file": new.name, "sha256": digest}
    if isinstance(index, dict):
        try:
            index["index_sha256"] = index_digest(index)
        except (RecursionError, UnicodeEncodeError):
            pass  # what no digest can be made of is refused before that
        else:
            (folder / INDEX).write_bytes(encode(index))
            return f"forged {kind}"
    (folder / INDEX).write_bytes(as_json(index))
    return f"forged {kind}"


def judged(act: Callable[[], Any], seen: Outcome, say: Callable[[str], None]) -> Any:
    """What `act` gives, None if it refuses; anything but a clear refusal is counted as a traceback."""
    try:
        return act()
    except ValueError as error:
        seen["refused"] += 1
        if len(str(error)) > LONGEST_MESSAGE:
            seen["long messages"] += 1
            say(f"a message of {len(str(error))} characters: {str(error)[:200]}")
    except Exception:
        seen["tracebacks"] += 1
        say(traceback.format_exc())
    return None


def fuzz(mutants: int, seed: int, say: Callable[[str], None] = print) -> Outcome:
    """Read so many mutants; counts of outcomes, of which `tracebacks`, `damaged used`, `unsaved` are faults."""
    draw, seen = random.Random(seed), Outcome()
    with tempfile.TemporaryDirectory() as name:
        base, folder = Path(name, "base"), Path(name, "mutant")
        bases = {dtype: base / dtype for dtype in FORMATS}
        for dtype, place in bases.items():
            write_base(place, dtype)
        true = {dtype: (content(place, False), examples(place)) for dtype, place in bases.items()}
        for number in range(mutants):
            dtype = draw.choice(FORMATS)
            shutil.rmtree(folder, ignore_errors=True)
            shutil.copytree(bases[dtype], folder)
            kind = mutant(folder, draw)
            seen[kind] += 1
            before = seen["tracebacks"] + seen["long messages"]
            lazy = draw.random() < 0.5
            read = judged(lambda lazy=lazy: content(folder, lazy), seen, say)
            kept = judged(lambda: examples(folder), seen, say)
            if kind.startswith("damaged"):
                wrong = (read is not None and read != true[dtype][0]) or (kept is not None and kept != true[dtype][1])
                seen["damaged used"] += wrong
            elif read is not None:
                seen["forged read"] += 1
                judged(lambda: config_of(KVMemory.from_pretrained(folder)), seen, say)
                other = Path(name, "other")
                shutil.rmtree(other, ignore_errors=True)
                memory = KVMemory.from_pretrained(folder, lazy=lazy)
                if judged(lambda memory=memory, other=other: save(memory, other) or True, seen, say):
                    seen["unsaved"] += judged(lambda other=other: content(other, False), seen, say) != read
            if seen["tracebacks"] + seen["long messages"] > before:
                say(f"mutant {number} of seed {seed}: {kind}")
    return seen


# -- kills


def turn(folder: Path, number: int) -> None:
    """Learn a task and forget the last but one, as the commands do."""
    sweep(folder)
    memory = KVMemory.from_pretrained(folder)
    state = stored_state(memory, folder)
    memory.metadata["turn"] = str(number)
    memory.add(entry(number, f"secret-{number:06d}", "int8"))
    state.anchors.append(anchor(number, f"secret-{number:06d}"))
    if (gone := f"secret-{number - 2:06d}") in memory.tasks:
        memory.forget(gone)
        state.forget(gone)
    save(memory, folder, state)


def kill(kills: int, seed: int, say: Callable[[str], None] = print) -> Outcome:
    """End so many processes while they write; `mixed`, `forgotten found` and `tracebacks` are faults."""
    draw, seen = random.Random(seed), Outcome()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_base(folder, "int8")
        number = 100
        for _ in range(kills):
            child = os.fork()
            if not child:
                try:
                    for later in range(number, number + 10_000):
                        turn(folder, later)
                finally:
                    os._exit(1)
            time.sleep(draw.uniform(0.0, 0.12))
            os.kill(child, signal.SIGKILL)
            _, status = os.waitpid(child, 0)
            seen["killed" if os.WIFSIGNALED(status) else "ended by itself"] += 1
            with_state = judged(lambda: (KVMemory.from_pretrained(folder), examples(folder)), seen, say)
            if with_state is None:
                seen["unreadable"] += 1
                continue
            memory, state = with_state
            last = int(memory.metadata.get("turn", number))
            seen["turns"] += max(0, last - number + 1)
            seen["mixed"] += set(memory.tasks) != set(state.tasks) or (
                "turn" in memory.metadata and f"secret-{last:06d}/{last}" != state.anchors[-1].id
            )
            seen["left over by the kill"] += len([p for p in folder.iterdir() if p.name != LOCK]) > 3
            sweep(folder)
            held = b"".join(path.read_bytes() for path in folder.iterdir())
            secrets = {f"secret-{n:06d}" for n in range(100, last + 2)} - set(memory.tasks)
            seen["forgotten found"] += any(secret.encode() in held for secret in secrets)
            number = last + 1
    return seen


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutants", type=int, default=300)
    parser.add_argument("--kills", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    seen = fuzz(options.mutants, options.seed)
    print("mutants:", dict(sorted(seen.items())))
    faults = [seen[name] for name in ("tracebacks", "damaged used", "unsaved", "long messages")]
    if options.kills:
        seen = kill(options.kills, options.seed)
        print("kills:", dict(sorted(seen.items())))
        faults += [seen[name] for name in ("tracebacks", "mixed", "forgotten found", "unreadable", "ended by itself")]
    sys.exit(1 if any(faults) else 0)


if __name__ == "__main__":
    main()
