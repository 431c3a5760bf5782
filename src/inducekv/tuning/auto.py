"""`payload="auto"`: the first task decides the payload for good."""

from __future__ import annotations

from collections.abc import Sequence

from inducekv.backbone import Backbone
from inducekv.config import InduceKVConfig
from inducekv.examples import Example
from inducekv.memory import BudgetError
from inducekv.progress import SILENT, Progress
from inducekv.tuning.split import TooFewExamples
from inducekv.tuning.tuner import POINTS, tune

TASKS_EXPECTED = 4
"""Tasks that a memory is assumed to hold in the end: the first is tuned with this share of the budget. CHOICE."""


def tuned_on_first(
    backbone: Backbone,
    examples: Sequence[Example],
    task: str,
    config: InduceKVConfig,
    progress: Progress = SILENT,
) -> tuple[InduceKVConfig, list[str]]:
    """A configuration whose payload is no longer `"auto"`, and notes for a person.

    With too few examples, or a share of the budget that holds nothing, it is the payload that the model names for
    itself, else the defaults'.
    """
    plain = backbone.config({"retrieval": config.retrieval})
    plain = InduceKVConfig() if plain.payload == "auto" else plain
    names = ("payload", "payload_tokens", "payload_dtype", "key_dtype", "payload_layers")
    fallback = config.replace(**{name: getattr(plain, name) for name in names})
    known = [example for example in examples if isinstance(example, Example) and (example.answer or "").strip()]
    distinct = {example.identifier: example for example in known}
    try:
        report = tune(
            backbone,
            {task: list(distinct.values())},
            fallback,
            tasks_in_all=TASKS_EXPECTED,
            points=POINTS,
            progress=progress,
        )
    except (TooFewExamples, BudgetError) as error:
        return fallback, [f"payload='auto' was not tuned ({error}); the default payload is used"]
    found = report.chosen
    return report.config, [
        f"payload='auto' found {found.point.label}: {found.accuracy:.0f} % of {report.questions} held-out questions",
        *report.notes,
    ]
