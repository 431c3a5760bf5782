"""A small stream and methods that need no model, for the tests of the bench."""

import functools
import os
import signal
from pathlib import Path

import numpy as np

import tiny
from inducekv.continual import bench
from inducekv.continual.ledger import Ledger
from inducekv.continual.methods.base import Method, MethodKind
from inducekv.continual.methods.storage import State, read_state, write_state
from inducekv.continual.metrics import empty_matrix
from inducekv.continual.results import Result
from inducekv.continual.stream import Stream
from inducekv.examples import Example

WORDS = ("zorb", "blick", "flim", "quon")


def small_stream(name="fake", *, seed=0, root=None, limit=None, tests=3, **_):
    """Four tasks of one word each; no picture occurs twice, so that no two retrieval keys tie."""

    def example(number, word):
        return Example("what?", word, (tiny.picture(number),), id=f"{word}-{number}")

    tasks = [
        (
            f"task {word}",
            [example(2 * t + i, word) for i in range(2)],
            [example(10 * t + i + 40, word) for i in range(tests)],
        )
        for t, word in enumerate(WORDS)
    ]
    return Stream.from_tasks(tasks, name)


class Parrot(Method):
    """Says the word it learned last; its state is that word. KILL_AT=n kills the process when task n is learned."""

    name, title = "parrot", "Parrot"

    def __init__(self):
        self.word, self.learned = "", []

    def learn(self, experience, progress=None):
        if os.environ.get("KILL_AT") == str(len(self.learned)):
            os.kill(os.getpid(), signal.SIGKILL)
        self.word = experience.train[-1].answer
        self.learned.append(experience.position)
        log = os.environ.get("LEARNED")
        if log:
            with Path(log).open("a") as file:
                file.write(f"{experience.position}\n")

    def answer(self, examples, progress=None, task=None):
        return [self.word] * len(examples)

    @property
    def deployed_bytes(self):
        return len(self.word)

    def ledger(self):
        return Ledger(len(self.word))

    def save(self, directory):
        write_state(directory, self.name, State(facts={"word": self.word, "learned": self.learned}))

    def load(self, directory):
        facts = read_state(directory, self.name).facts
        self.word, self.learned = facts["word"], facts["learned"]


class Echo(Parrot):
    """Says what its partner says."""

    name, title, shares, reference = "echo", "Echo", "parrot", True

    def __init__(self, partner):
        super().__init__()
        self.partner = partner

    def learn(self, experience, progress=None):
        pass

    def answer(self, examples, progress=None, task=None):
        return self.partner.answer(examples)


class Oracle(Parrot):
    """Knows the task."""

    name, title, reference, sees_task_labels = "oracle", "Oracle", True, True

    def answer(self, examples, progress=None, task=None):
        return [task.removeprefix("task ")] * len(examples)


def _made(name, backbone, *, budget, partner=None, **_):
    if budget < 10:
        raise ValueError(f"a budget of {budget} bytes is too small; the smallest that works is 10")
    return {"parrot": Parrot, "oracle": Oracle}[name]() if name != "echo" else Echo(partner)


@functools.cache
def backbone():
    """Some backbone; the fake methods do not look at it."""
    return tiny.llava()


def install():
    """Puts these in the place of the real streams and methods."""
    kinds = (Parrot, Echo, Oracle)
    table = {kind.name: MethodKind(kind.name, kind.title, "fake", kind, None, lambda: None) for kind in kinds}
    bench.METHODS = table
    bench.make_method = _made
    bench.stream_named = small_stream


def result(method="inducekv", seed=0, budget=2**18, skill=0.8, stream="fake/one", **changes):
    """A made-up result with answers that are right with probability `skill`."""
    generator = np.random.default_rng([seed, *method.encode()])
    tasks, size = [f"task {word}" for word in WORDS], 10
    scores = [(generator.random(size) < skill).astype(float).tolist() for _ in tasks]
    matrix = empty_matrix(len(tasks))
    matrix[np.tril_indices(len(tasks))] = 100 * skill
    matrix[-1] = [100 * np.mean(block) for block in scores]
    answers = [["zorb" if score else "x" for score in block] for block in scores]
    fields = {
        "title": method.title(),
        "reference": False,
        "tasks": tasks,
        "sizes": [size] * len(tasks),
        "graders": ["exact"] * len(tasks),
        "questions": f"digest {seed}",
        "matrix": matrix,
        "deployed_bytes": [1000] * len(tasks),
        "training_bytes": [0] * len(tasks),
        "ledger": {"deployed": 1000, "training": 0},
        "learn_seconds": [1.5] * len(tasks),
        "answer_seconds": [0.5] * len(tasks),
        "peak_memory": {"rss": 10**8},
        "final": answers,
        "diagonal": answers,
        "scores": scores,
        "clusters": [[t * size + i // 2 for i in range(size)] for t in range(len(tasks))],
        "settings": {"model": "embedded", "limit": None},
        "versions": {"torch": "2"},
    }
    return Result(**{"stream": stream, "method": method, "budget": budget, "seed": seed, **fields, **changes})
