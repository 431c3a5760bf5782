"""Learning one task: extract candidates, calibrate, select under the budget, commit."""

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from jaxtyping import Float
from torch import Tensor

from inducekv.abstention import thresholds
from inducekv.backbone import Backbone
from inducekv.bytes import format_bytes
from inducekv.config import InduceKVConfig
from inducekv.contradictions import hashed_id, without_contradicted
from inducekv.entry import Entry, check_name
from inducekv.error_text import shown
from inducekv.examples import Example
from inducekv.extraction import extract
from inducekv.first_calibration import QUESTIONS, first_calibration
from inducekv.learn_report import LearnReport as LearnReport
from inducekv.lengths import check_texts, context_of
from inducekv.memory import BudgetError, KVMemory
from inducekv.memory_config import metadata_of, note_config
from inducekv.progress import SILENT, Progress
from inducekv.ranks import ALONE, Ranks
from inducekv.retrieval import Calibration
from inducekv.selection import SELECTORS, Coverage, Objective, Selection, SelectionProblem, fit_to_chosen, indicator
from inducekv.selection.likelihood import LikelihoodScorer, to_calibration, to_phi
from inducekv.selection.objective import Prior, Split
from inducekv.selection.problem import all_fit
from inducekv.selection.questions import Question, questions_of
from inducekv.splits import assign_roles, two_levels
from inducekv.training_state import TrainingState


def learn(
    backbone: Backbone,
    memory: KVMemory,
    examples: Sequence[Example],
    *,
    task: str,
    config: InduceKVConfig,
    training_state: TrainingState,
    progress: Progress = SILENT,
    ranks: Ranks = ALONE,
) -> LearnReport:
    """Learns a task into a memory (InduceKV; specs/inducekv.md, section 3). The backbone's parameters are only read.

    Entries already in the memory compete with the new candidates for its bytes. Nothing is changed until everything is
    decided: on an error memory and training state are as they were. A task that is learned again is extended; an
    example that it already has an entry of replaces that entry, and so does one with the pictures and question of an
    entry and another answer (`without_contradicted`), which the report's warnings tell.

    Args:
        backbone: the frozen model.
        memory: changed at the end; its own budget holds.
        examples: of the task, each with an answer.
        task: name, 1 to 128 bytes of printable text.
        config: how to learn.
        training_state: anchors of earlier tasks; the task's own are added at the end.
        progress: told about each stage.
        ranks: this process among several that learn the same: each encodes a share of the candidates, and all end with
            the memory that one process alone would have made.

    Raises:
        ValueError: no examples, one without an answer or longer than the model's context, an unreadable picture, a bad
            task name.
        BudgetError: the budget does not hold even one entry of this task.
    """
    watch = _Watch()
    warnings: list[str] = []
    check_name("task name", task)
    taken = {entry.id for entry in memory.entries if entry.task != task}
    examples = _named(examples, task, taken, warnings)
    check_texts(examples, backbone.processor.tokenizer, context_of(backbone.text_model), backbone.image_token)
    roles = assign_roles(examples, config.candidates, config.seed)
    with watch("extract"):
        candidates = [examples[i] for i in roles.candidates]
        fresh, keys = extract(backbone, memory, candidates, task, config, progress, ranks)
    new_ids = {entry.id for entry in fresh}
    old, earlier_state = without_contradicted(memory, fresh, candidates, training_state, config, warnings)
    pool = [*old, *fresh]
    costs = torch.tensor([memory.entry_nbytes(entry) for entry in pool])
    total = memory.budget - _fixed_nbytes(memory, task, config)
    if total < int(costs[len(old) :].min()):
        raise BudgetError(
            f"one entry of {task!r} takes {format_bytes(int(costs[len(old) :].min()))}, but the budget of "
            f"{format_bytes(memory.budget)} leaves {format_bytes(max(total, 0))} for entries; raise the budget, "
            "or make entries smaller (payload, payload_tokens, payload_dtype, key_dtype)"
        )
    asks = config.scores_questions(everything_fits=all_fit(costs, total))
    is_first = config.mass is None and not len(memory)
    with watch("prepare"):
        known = {entry.id: key for entry, key in zip(fresh, keys, strict=True)}
        asked = [examples[i] for i in (*roles.calibration, *roles.current)]
        if not asks:  # their keys are all that is needed, and those of candidates are there
            asked = [example for example in asked if example.identifier in known]
        questions = questions_of(backbone, asked, [task] * len(asked), config, known)
        anchors = _anchor_questions(backbone, earlier_state, examples, memory, config) if asks else []
        inner_anchors, outer_anchors = two_levels(anchors)
        splits: dict[Split, list[Question]] = {
            "calibration": questions[: len(roles.calibration)],
            "current": questions[len(roles.calibration) :],
            "calibration_anchors": inner_anchors,
            "anchors": outer_anchors,
        }
        pool_memory = KVMemory(2**62, memory.layout, memory.payload_dtype, memory.fingerprint)  # never leaves here
        pool_memory.replace_all(pool)
        pool_keys = pool_memory.keys()
        scorer = LikelihoodScorer(
            backbone,
            pool_memory,
            pool_keys,
            [entry.id for entry in pool],
            [entry.answer for entry in pool],
            splits if asks else {"calibration": questions[:QUESTIONS]} if is_first else {},
            config,
            progress,
            [entry.behind or training_state.behind.get(entry.id, ()) for entry in pool],
        )
    earlier = len(set(memory.tasks) - {task})
    with watch("calibrate"):
        start = _start(memory, config)
        start = first_calibration(scorer, start, progress) if is_first else start
    problem = _problem(scorer, pool, pool_keys, costs, total, start, config, earlier)
    generator = torch.Generator().manual_seed(config.seed)
    with watch("select"):
        selection = SELECTORS[config.selector](problem, config, generator, progress)
    with watch("calibrate"):  # adds to what the start took
        phi = _calibrate(problem, selection, config, generator, progress)
    with watch("assess"), torch.no_grad():
        held = indicator([i for i, entry in enumerate(pool) if i < len(old)], len(pool))
        before, after = (
            problem.objective.outer(weights, at).as_numbers() if asks else {}
            for weights, at in ((held, problem.phi), (indicator(selection.chosen, len(pool)), phi))
        )
    chosen = [pool[i] for i in selection.chosen]
    limits = thresholds(chosen, pool_keys[selection.chosen], [*questions, *anchors], config.key_space)
    state = earlier_state.updated(examples, task, config.anchors, config.seed)
    left = {entry.task for entry in chosen}  # examples of other tasks would measure nothing
    state.anchors = [anchor for anchor in state.anchors if anchor.task in left]
    dropped = Counter(entry.task for i, entry in enumerate(old) if i not in set(selection.chosen))
    for name in set(memory.tasks) - {entry.task for entry in chosen}:
        warnings.append(f"no entry of {name!r} is left: the budget is too small for all tasks")
    if not any(entry.task == task for entry in chosen):
        warnings.append(f"no entry of {task!r} was kept: the memory has nothing to gain from it under this budget")

    memory.replace_all(chosen)
    memory.calibration = to_calibration(phi)
    for name, limit in limits.items():  # of earlier tasks a few anchors are asked: too few to refuse more by
        memory.thresholds[name] = min(limit, memory.thresholds.get(name, limit))
    note_config(memory, config)
    training_state.anchors = state.anchors
    training_state.behind = {  # without anchors no earlier question is asked, and nothing is kept
        entry.id: others
        for entry in chosen
        if config.anchors and (others := entry.behind or training_state.behind.get(entry.id, ()))
    }
    return LearnReport(
        task=task,
        examples=len(examples),
        candidates=len(fresh),
        chosen=[entry.id for entry in chosen if entry.id in new_ids],
        dropped=dict(dropped),
        entries=len(memory),
        nbytes=memory.nbytes,
        budget=memory.budget,
        anchors=len(state.anchors),
        anchors_nbytes=state.nbytes,
        before=before,
        after=after,
        tau=float(memory.calibration.tau),
        mass=float(memory.calibration.mass),
        lambdas=memory.calibration.lambdas.tolist(),
        seconds=watch.seconds,
        history=selection.history,
        warnings=warnings,
    )


class _Watch:
    """Seconds by stage."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self.seconds[stage] = self.seconds.get(stage, 0.0) + time.perf_counter() - start


def _named(examples: Sequence[Example], task: str, taken: set[str], warnings: list[str]) -> list[Example]:
    """The examples under the ids their entries will have, each once."""
    named: dict[str, Example] = {}
    count = 0
    for example in examples:
        if not isinstance(example, Example):
            raise TypeError(f"learn takes Examples, got {type(example).__name__}: {shown(example)}; see read_examples")
        if not example.answer or not example.answer.strip():
            raise ValueError(f"{example.label} has no answer; every example to learn needs one")
        count += 1
        name = entry_id(example.identifier, task, taken)
        named.setdefault(name, dataclasses.replace(example, id=name))
    if not named:
        raise ValueError("there is nothing to learn: no examples were given")
    if len(named) < count:
        warnings.append(f"{count - len(named)} examples have the id of another one and were left out")
    return list(named.values())


def entry_id(identifier: str, task: str, taken: set[str]) -> str:
    """The example's own id where it can be an entry's and no other task's entry has it, else a hash of task and id."""
    try:
        check_name("entry id", identifier)
    except ValueError:
        pass
    else:
        if identifier not in taken:
            return identifier
    return hashed_id(task, identifier)


def _fixed_nbytes(memory: KVMemory, task: str, config: InduceKVConfig) -> int:
    """Bytes of the files that are not entries' once the task is in the memory's table and the metadata is noted."""
    tasks = {*memory.tasks, task}
    return max(memory.base_nbytes(tasks, noted) for noted in (memory.metadata, metadata_of(memory, config)))


def _start(memory: KVMemory, config: InduceKVConfig) -> Calibration:
    if len(memory):
        return memory.calibration
    return Calibration.initial(len(memory.layout.layers), config.temperature, mass=config.mass or 0.0)


def _anchor_questions(
    backbone: Backbone, state: TrainingState, examples: Sequence[Example], memory: KVMemory, config: InduceKVConfig
) -> list[Question]:
    """Anchors of tasks in the memory; none of those is one of the new examples."""
    present, new = set(memory.tasks), {example.identifier for example in examples}
    anchors = [anchor for anchor in state.anchors if anchor.task in present and anchor.id not in new]
    return questions_of(backbone, [a.example() for a in anchors], [a.task for a in anchors], config)


def _problem(
    scorer: LikelihoodScorer,
    pool: Sequence[Entry],
    keys: Float[Tensor, "entries key_dim"],
    costs: Tensor,
    total: int,
    start: Calibration,
    config: InduceKVConfig,
    earlier: int,
) -> SelectionProblem:
    """J of a task after `earlier` others. CHOICE: anchors weigh beta a task, so that all tasks count alike."""
    spent = min(total, int(costs.sum()))
    coverage = Coverage.of_keys(
        keys, costs, spent, dimensions=config.projection_dim, epsilon=config.epsilon, seed=config.seed
    )
    initial = to_phi(Calibration.initial(len(start.phi_lambda), config.temperature, mass=config.mass or 0.0))
    prior = Prior(initial, config.calibration_prior) if config.calibration_prior else None
    objective = Objective(scorer, coverage, config.beta * max(1, earlier), config.gamma, prior)
    tasks, ids = [entry.task for entry in pool], [entry.id for entry in pool]
    answers = [entry.answer for entry in pool]
    return SelectionProblem(objective, keys, costs, total, to_phi(start), tasks, ids, answers)


def _calibrate(
    problem: SelectionProblem,
    selection: Selection,
    config: InduceKVConfig,
    generator: torch.Generator,
    progress: Progress,
) -> Float[Tensor, " parameters"]:
    """phi fitted to what was chosen, the same way for every selector."""
    return fit_to_chosen(
        problem.objective,
        indicator(selection.chosen, len(problem)),
        selection.phi,
        steps=config.calibration_steps,
        lr=config.inner_lr,
        generator=generator,
        progress=progress,
    )
