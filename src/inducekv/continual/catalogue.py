"""What each compared method is, in words: a table that is read without importing the methods, which need torch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from inducekv.config import FAST

ABLATIONS: dict[str, tuple[str, dict[str, Any]]] = {
    "no_coupling": ("phi is not refitted while entries are chosen", {"inner_steps": 0}),
    "no_retention": ("no term for the anchors of earlier tasks", {"beta": 0.0}),
    "no_coverage": ("no term for the spectral coverage of the keys", {"gamma": 0.0}),
    "no_retrieval_weighting": ("retrieved entries are read alike, whatever their alpha", {"weighting": "none"}),
    "all_layers": (
        "payloads of all layers in 4 bits, as for a model that names none",
        {"payload_layers": None, "payload_dtype": "int4"},
    ),
    "fast": ("one pass over the examples: facility location, phi as it starts, no question asked", FAST),
    "greedy": ("entries chosen greedily", {"selector": "greedy"}),
    "facility_location": ("entries chosen by facility location", {"selector": "facility_location"}),
    "herding": ("entries chosen by herding", {"selector": "herding"}),
    "reservoir": ("entries chosen by reservoir sampling", {"selector": "reservoir"}),
    "random": ("entries chosen at random", {"selector": "random"}),
}
"""What each ablation of InduceKV is, and the configuration it changes."""
ONLY_NAMED = ("all_layers",)
"""Those that take nothing away from the method: rows that run when they are named, not with `all`."""


@dataclass(frozen=True)
class Listed:
    """A method as `bench list` shows it.

    Attributes:
        title: as it stands in a report.
        summary: what it is, in one line.
        reference: a row to compare with, not a contender.
        only_named: it is no part of `--methods all`.
    """

    title: str
    summary: str
    reference: bool = False
    only_named: bool = False


CATALOGUE: dict[str, Listed] = {
    "zero_shot": Listed("Zero-shot", "the frozen model as it is", reference=True),
    "nearest_neighbour": Listed("Nearest neighbour", "the answer of InduceKV's nearest entry, copied", reference=True),
    "retrieved_prompt": Listed(
        "Retrieved prompt", "the examples that InduceKV retrieves, as chat turns", reference=True
    ),
    "masked_prompt": Listed(
        "Masked prompt", "the same examples as memory, encoded alone, whole and in full precision", reference=True
    ),
    "individual_lora": Listed("Individual LoRA", "a LoRA for each task, chosen by its label", reference=True),
    "joint_lora": Listed("Joint LoRA", "one LoRA trained on all tasks at once", reference=True),
    "sequential_lora": Listed("Sequential LoRA", "one LoRA trained on one task after another"),
    "replay_lora": Listed("Replay + LoRA", "sequential LoRA with a small buffer of earlier examples"),
    "ewc_lora": Listed("EWC + LoRA", "sequential LoRA with weights held by their Fisher information"),
    "lwf_lora": Listed("LwF + LoRA", "sequential LoRA distilled from its former self on the new questions"),
    "olora": Listed("O-LoRA", "ranks of its own for each task, orthogonal to earlier ones"),
    "moelora": Listed("MoELoRA", "LoRA experts mixed by a router in every linear"),
    "osft": Listed("OSFT", "the smallest singular directions of the weights, trained in turn"),
    "prompt_tuning": Listed("Prompt tuning", "soft prompts before every question"),
    "l2p": Listed("L2P", "a pool of soft prompts, picked by the question's key"),
    "cartridge": Listed("Cartridge", "keys and values of virtual tokens, trained directly"),
    "inducekv": Listed("InduceKV", "a memory of entries chosen by bilevel selection"),
    **{
        f"inducekv/{name}": Listed(f"InduceKV, {name.replace('_', ' ')}", what, only_named=name in ONLY_NAMED)
        for name, (what, _) in ABLATIONS.items()
    },
}
"""Every method by the name it is asked for: reference rows first, then methods, then InduceKV and its ablations."""
