"""One model, many threads: every answer is that of its own memory, nothing is raised, nothing is left on the model."""

import contextvars
import random
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import tiny
import tiny_families
from inducekv.attention import attached
from inducekv.backbone import Backbone
from inducekv.calls import OPEN, lock_of
from inducekv.compression import RetentiveKV, ShiftKV
from inducekv.lookup import Reading
from inducekv.memory_config import note_config
from inducekv.model import InducedModel
from test_attention import parameters_of, trace
from test_family_parity import example
from test_in_flight import taught
from test_parity import inputs_of, memory_of

THREADS, SEEDS = 4, (20, 21, 22, 23)
WAIT = 600
"""Seconds after which threads that wait for one another are taken to have locked each other out."""
GREEDY = {"max_new_tokens": 3, "min_new_tokens": 3, "do_sample": False}
LEARNED = ((1, 3, 4), (5, 6, 7), (8, 9, 11))


@pytest.fixture(autouse=True)
def _switching() -> Iterator[None]:
    """Threads take turns as often as they can."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    yield
    sys.setswitchinterval(before)


def everything_on(model: Any) -> list[Any]:
    """What contexts of any kind could leave."""
    return [trace(model), [list(module._forward_hooks) for module in model.modules()], OPEN.get()]


class Customers:
    """Models of one backbone with a memory each, and what each answers when nobody else is there."""

    def __init__(self, backbone: Backbone, **changes: Any) -> None:
        self.backbone, self.hf = backbone, backbone.model
        changes = {"top_k": 2, **changes}
        self.models = [taught(backbone, seeds, **changes) for seeds in LEARNED]
        self.questions = [example(backbone, seed, False) for seed in SEEDS]
        self.inputs = [inputs_of(backbone, [question]) for question in self.questions]
        self.expected = {}
        for place in range(len(SEEDS)):
            for name in (*range(len(LEARNED)), "plain", "compressed", "both"):
                self.expected[name, place] = self.generated(name, place)
        told_apart = {tuple(tokens.flatten().tolist()) for tokens in self.expected.values()}
        assert len(told_apart) > len(SEEDS), "memories must matter for this test to mean anything"
        self.texts = [
            [model.answer_all([question], max_new_tokens=3)[0] for question in self.questions] for model in self.models
        ]

    def generated(self, name: Any, place: int) -> Tensor:
        def run() -> Tensor:
            return self.hf.generate(**self.inputs[place], **GREEDY)

        if name == "plain":
            return run()
        if name == "compressed":
            with ShiftKV(3, proxies=16, groups=4)(self.hf):
                return run()
        if name == "both":
            with self.models[0].attached(), RetentiveKV(3)(self.hf):
                return run()
        with self.models[0].attached(self.models[name].memory):
            return run()


def turns(customers: Customers, seed: int, count: int, wrong: list[Any]) -> None:
    """What one thread does: questions of several customers, in several ways."""
    draw = random.Random(seed)
    for _ in range(count):
        name, place = draw.choice([0, 1, 2, 0, 1, 2, "answer_all", "plain", "compressed", "both"]), draw.randrange(4)
        try:
            if name == "answer_all":
                which = [draw.randrange(3) for _ in SEEDS]
                memories = [customers.models[i].memory for i in which]
                got = customers.models[0].answer_all(customers.questions, memory=memories, max_new_tokens=3)
                expected = [customers.texts[i][k] for k, i in enumerate(which)]
                same = [(a.text, [s.id for s in a.sources]) for a in got] == [
                    (a.text, [s.id for s in a.sources]) for a in expected
                ]
            else:
                same = torch.equal(customers.generated(name, place), customers.expected[name, place])
        except Exception as error:
            same = False
            name = (name, error)
        if not same:
            wrong.append((name, place))


def all_at_once(jobs: list[Callable[[], Any]]) -> list[Any]:
    """Results of jobs that all start at the same time; what one raises is raised here."""
    start = threading.Barrier(len(jobs))

    def run(job: Callable[[], Any]) -> Any:
        start.wait(timeout=WAIT)
        return job()

    with ThreadPoolExecutor(len(jobs)) as pool:
        return [future.result(timeout=WAIT) for future in [pool.submit(run, job) for job in jobs]]


@pytest.mark.parametrize(
    ("family", "retrieval"), [("llava", "two_pass"), ("qwen2_5_vl", "in_flight"), ("llama", "two_pass")]
)
def test_every_thread_gets_its_own_answers(family: str, retrieval: str) -> None:
    backbone = tiny_families.model(family)
    customers = Customers(backbone, retrieval=retrieval)
    before, weights, wrong = everything_on(backbone.model), parameters_of(backbone.model), list[Any]()
    all_at_once([lambda seed=seed: turns(customers, seed, 12, wrong) for seed in range(THREADS)])  # type: ignore[misc]
    assert wrong == []
    assert everything_on(backbone.model) == before
    assert all(map(torch.equal, parameters_of(backbone.model), weights))
    assert torch.equal(customers.generated("plain", 0), customers.expected["plain", 0])


def test_answers_while_another_thread_learns_and_forgets() -> None:
    """Answers of other memories stay, and those of the memory that learns are its old ones or its new ones."""
    backbone = tiny_families.model("llava")
    customers = Customers(backbone, retrieval="two_pass")
    learner = InducedModel.from_pretrained(
        backbone, config={"budget": "1MiB", "abstain": False, "top_k": 2, "inner_steps": 1, "outer_steps": 1}
    )
    pupils = [tiny.example(seed) for seed in range(30, 36)]
    learner.learn(pupils[:3], task="first")
    before, states = everything_on(backbone.model), list[list[str]]()

    def seen() -> list[str]:
        return [answer.text for answer in learner.answer_all(customers.questions, max_new_tokens=3)]

    states.append(seen())
    wrong, met, stop = list[Any](), list[list[str]](), threading.Event()

    def learn() -> None:
        try:
            for _ in range(2):
                learner.learn(pupils[3:], task="second")
                states.append(seen())
                learner.forget("second")
                states.append(seen())
        finally:
            stop.set()

    def ask() -> None:
        while not stop.is_set():
            met.append(seen())

    all_at_once([learn, ask, lambda: turns(customers, 1, 12, wrong), lambda: turns(customers, 2, 12, wrong)])
    assert wrong == []
    assert met and all(answers in states for answers in met)
    assert everything_on(backbone.model) == before


def test_a_context_is_of_its_thread_and_of_copies_of_its_context(llava: Backbone) -> None:
    inputs = inputs_of(llava, [tiny.example(2, answer=False)])
    memory = memory_of(llava, [[tiny.example(1)]])

    def logits() -> Tensor:
        with torch.no_grad():
            return llava.model(**inputs).logits

    plain = logits()
    with ThreadPoolExecutor(1) as pool, attached(llava, memory):
        inside = logits()
        assert not torch.equal(inside, plain)
        assert torch.equal(pool.submit(logits).result(), plain)
        assert torch.equal(pool.submit(contextvars.copy_context().run, logits).result(), inside)
        with attached(llava, None):
            assert torch.equal(logits(), plain)
        assert torch.equal(logits(), inside)


@pytest.mark.parametrize("order", [(0, 1), (1, 0)], ids=["first in first out", "last in first out"])
def test_contexts_of_two_threads_overlap_in_any_order(llava: Backbone, order: tuple[int, int]) -> None:
    """Each opens its own, both generate, and they close in either order."""
    customers = Customers(llava, retrieval="two_pass")
    before = everything_on(llava.model)
    opened, done, closed = threading.Barrier(2), threading.Barrier(2), [threading.Event(), threading.Event()]

    def use(which: int) -> Tensor:
        with customers.models[0].attached(customers.models[which].memory):
            opened.wait(timeout=WAIT)
            got = llava.model.generate(**customers.inputs[0], **GREEDY)
            done.wait(timeout=WAIT)
            if order[0] != which:
                closed[order[0]].wait(timeout=WAIT)
        closed[which].set()
        return got

    first, second = all_at_once([lambda: use(0), lambda: use(1)])
    assert torch.equal(first, customers.expected[0, 0]) and torch.equal(second, customers.expected[1, 0])
    assert everything_on(llava.model) == before


def test_a_memory_that_changes_during_a_lookup_is_read_as_it_was(llava: Backbone) -> None:
    """Between finding entries and fetching them."""
    model = taught(llava, retrieval="two_pass")
    asked = [tiny.example(2, answer=False)]
    expected = model.answer_all(asked, max_new_tokens=3)
    assert expected[0].sources
    entries, fetch = list(model.memory.entries), Reading.injection

    def changed_meanwhile(reading: Reading, *given: Any) -> Any:
        model.memory.replace_all(entries[:1])
        return fetch(reading, *given)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Reading, "injection", changed_meanwhile)
        assert model.answer_all(asked, max_new_tokens=3) == expected
    assert model.answer_all(asked, max_new_tokens=3) != expected


def test_a_memory_is_read_as_it_was_until_everything_is_learned(llava: Backbone) -> None:
    config = {"budget": "1MiB", "abstain": False, "inner_steps": 1, "outer_steps": 1}
    model = InducedModel.from_pretrained(llava, config=config)
    model.learn([tiny.example(1), tiny.example(3)], task="first")
    asked, during = [tiny.example(2, answer=False)], list[Any]()
    before = model.answer_all(asked, max_new_tokens=3)

    def ask(*given: Any) -> None:
        during.append(model.answer_all(asked, max_new_tokens=3))
        note_config(*given)

    memory = model.memory
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("inducekv.learner.note_config", ask)  # the last step
        model.learn([tiny.example(4), tiny.example(6)], task="second")
    assert during == [before] and model.memory is memory
    assert set(memory.tasks) == {"first", "second"} and model.answer_all(asked, max_new_tokens=3) != before


def test_generations_wait_for_one_another(llava: Backbone) -> None:
    """Models keep things between the passes of a generation."""
    inputs, free = inputs_of(llava, [tiny.example(2, answer=False)]), list[bool]()

    def look(ids: Tensor, scores: Tensor) -> Tensor:
        with ThreadPoolExecutor(1) as pool:
            taken = pool.submit(lock_of(llava.model).acquire, blocking=False).result()
        free.append(taken)
        return scores

    for context in (attached(llava, memory_of(llava, [[tiny.example(1)]])), ShiftKV(3)(llava)):
        with context:
            llava.model.generate(**inputs, **GREEDY, logits_processor=[look])
    assert free == [False] * 6


def test_an_error_in_one_thread_is_not_another_ones(llava: Backbone) -> None:
    customers = Customers(llava, retrieval="two_pass")
    before, wrong, failed = everything_on(llava.model), list[Any](), list[int]()

    def broken(inputs: dict[str, Any]) -> None:
        raise RuntimeError("no memory today")

    def fail() -> None:
        for _ in range(12):
            try:
                with attached(llava, broken):
                    llava.model.generate(**customers.inputs[0], **GREEDY)
            except RuntimeError:
                failed.append(1)

    all_at_once([fail, lambda: turns(customers, 1, 8, wrong), lambda: turns(customers, 2, 8, wrong)])
    assert wrong == [] and len(failed) == 12
    assert everything_on(llava.model) == before
    assert lock_of(llava.model).acquire(blocking=False), "the model is free"
    lock_of(llava.model).release()


def test_hooks_that_go_while_another_thread_is_in_a_pass(llava: Backbone) -> None:
    """The other thread's pass was about to call them: they do nothing there, whatever arguments they get."""
    inputs = inputs_of(llava, [tiny.example(2, answer=False)])
    memory, contexts = memory_of(llava, [[tiny.example(1)]]), list[Any]()

    def open_both(module: nn.Module, args: Any, kwargs: Any) -> None:
        contexts.extend([attached(llava, memory), ShiftKV(3)(llava)])
        for context in contexts:
            contextvars.Context().run(context.__enter__)

    def close_both(module: nn.Module, args: Any, kwargs: Any) -> None:
        while contexts:
            contextvars.Context().run(contexts.pop().__exit__, None, None, None)

    with torch.no_grad():
        plain = llava.model(**inputs, use_cache=True).logits
        before = everything_on(llava.model)
        layers = llava.text_model.layers
        hooks = [
            llava.model.register_forward_pre_hook(open_both, with_kwargs=True),
            layers[1].self_attn.register_forward_pre_hook(close_both, with_kwargs=True),
        ]
        try:
            assert torch.equal(llava.model(**inputs, use_cache=True).logits, plain)
        finally:
            for hook in hooks:
                hook.remove()
    assert everything_on(llava.model) == before
