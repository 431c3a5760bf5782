"""The compared methods, one file each, and the table of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from inducekv.backbone import Backbone
from inducekv.config import InduceKVConfig
from inducekv.continual.methods.base import Method as Method
from inducekv.continual.methods.base import MethodKind as MethodKind
from inducekv.continual.methods.cartridge import Cartridge
from inducekv.continual.methods.ewc_lora import EwcLora
from inducekv.continual.methods.individual_lora import IndividualLora
from inducekv.continual.methods.inducekv import ABLATIONS, ONLY_NAMED, InduceKV
from inducekv.continual.methods.joint_lora import JointLora
from inducekv.continual.methods.l2p import L2P
from inducekv.continual.methods.lwf_lora import LwfLora
from inducekv.continual.methods.masked_prompt import MaskedPrompt
from inducekv.continual.methods.moelora import MoELora
from inducekv.continual.methods.nearest_neighbour import NearestNeighbour
from inducekv.continual.methods.olora import OLora
from inducekv.continual.methods.osft import Osft
from inducekv.continual.methods.prompt_tuning import PromptTuning
from inducekv.continual.methods.replay_lora import ReplayLora
from inducekv.continual.methods.retrieved_prompt import RetrievedPrompt
from inducekv.continual.methods.sequential_lora import SequentialLora
from inducekv.continual.methods.trained import TrainedMethod
from inducekv.continual.methods.zero_shot import ZeroShot
from inducekv.model import InducedModel


def _zero_shot(backbone: Backbone, *, max_new_tokens: int, **_: Any) -> Method:
    return ZeroShot(backbone, max_new_tokens)


def _trains(kind: type[TrainedMethod]) -> Callable[..., Method]:
    def make(backbone: Backbone, *, budget: int, config: Any, partner: Any, **options: Any) -> Method:
        return kind(backbone, budget, **options)

    return make


def _inducekv(ablation: str | None = None) -> Callable[..., Method]:
    def make(
        backbone: Backbone,
        *,
        budget: int,
        seed: int,
        config: InduceKVConfig | None,
        max_new_tokens: int,
        partner: Any,
        stream_length: int,
    ) -> Method:
        changes = {"budget": budget, "seed": seed, **(ABLATIONS[ablation][1] if ablation else {})}
        model = InducedModel.from_pretrained(backbone, config=config.replace(**changes) if config else changes)
        return InduceKV(model, max_new_tokens, ablation)

    return make


def _nearest_neighbour(backbone: Backbone, *, partner: Method | None, **_: Any) -> Method:
    return NearestNeighbour(_partner(partner, NearestNeighbour).model)


def _retrieved_prompt(backbone: Backbone, *, partner: Method | None, max_new_tokens: int, **_: Any) -> Method:
    return RetrievedPrompt(_partner(partner, RetrievedPrompt).model, max_new_tokens)


def _masked_prompt(backbone: Backbone, *, partner: Method | None, max_new_tokens: int, **_: Any) -> Method:
    return MaskedPrompt(_partner(partner, MaskedPrompt).model, max_new_tokens)


def _partner(partner: Method | None, kind: type[Method]) -> InduceKV:
    if not isinstance(partner, InduceKV):
        raise ValueError(
            f"{kind.name} reads the memory of {kind.shares!r}: make that method first and give it as partner; "
            f"got {'none' if partner is None else partner.name}"
        )
    return partner


def _row(method: type[Method], summary: str, make: Callable[..., Method], needs: str | None = None) -> MethodKind:
    return MethodKind(method.name, method.title, summary, method, needs, make)


def _trained(method: type[TrainedMethod], summary: str) -> MethodKind:
    return _row(method, summary, _trains(method), needs="peft")


METHODS: dict[str, MethodKind] = {
    kind.name: kind
    for kind in (
        _row(ZeroShot, "the frozen model as it is", _zero_shot),
        _row(NearestNeighbour, "the answer of InduceKV's nearest entry, copied", _nearest_neighbour),
        _row(RetrievedPrompt, "the examples that InduceKV retrieves, as chat turns", _retrieved_prompt),
        _row(MaskedPrompt, "the same examples as memory, encoded alone, whole and in full precision", _masked_prompt),
        _trained(IndividualLora, "a LoRA for each task, chosen by its label"),
        _trained(JointLora, "one LoRA trained on all tasks at once"),
        _trained(SequentialLora, "one LoRA trained on one task after another"),
        _trained(ReplayLora, "sequential LoRA with a small buffer of earlier examples"),
        _trained(EwcLora, "sequential LoRA with weights held by their Fisher information"),
        _trained(LwfLora, "sequential LoRA distilled from its former self on the new questions"),
        _trained(OLora, "ranks of its own for each task, orthogonal to earlier ones"),
        _trained(MoELora, "LoRA experts mixed by a router in every linear"),
        _trained(Osft, "the smallest singular directions of the weights, trained in turn"),
        _trained(PromptTuning, "soft prompts before every question"),
        _trained(L2P, "a pool of soft prompts, picked by the question's key"),
        _trained(Cartridge, "keys and values of virtual tokens, trained directly"),
        _row(InduceKV, "a memory of entries chosen by bilevel selection", _inducekv()),
        *(
            MethodKind(
                f"inducekv/{name}",
                f"InduceKV, {name.replace('_', ' ')}",
                what,
                InduceKV,
                None,
                _inducekv(name),
                name in ONLY_NAMED,
            )
            for name, (what, _) in ABLATIONS.items()
        ),
    )
}
"""Every method by the name it is asked for: reference rows first, then methods, then InduceKV and its ablations."""


def make_method(
    name: str,
    backbone: Backbone,
    *,
    budget: int,
    seed: int,
    stream_length: int,
    config: InduceKVConfig | None = None,
    partner: Method | None = None,
    max_new_tokens: int = 32,
    **options: Any,
) -> Method:
    """Makes a method for one stream.

    Args:
        name: in `METHODS`.
        backbone: shared by all methods; none leaves anything on it.
        budget: bytes that it may deploy.
        seed: of its random draws.
        stream_length: tasks that will come.
        config: of InduceKV and its ablations, None: the backbone's own; `budget` and `seed` given here replace its.
        partner: the method whose memory it reads, where the table's row says `shares`.
        max_new_tokens: longest answer in tokens.
        options: of the method's class, such as `recipe`.

    Raises:
        ValueError: no such method, no partner where one is needed, or a budget too small for the method.
        ImportError: a package it needs is not installed.
    """
    if name not in METHODS:
        raise ValueError(f"no method {name!r}; known: {', '.join(METHODS)}")
    return METHODS[name].make(
        backbone,
        budget=budget,
        seed=seed,
        stream_length=stream_length,
        config=config,
        partner=partner,
        max_new_tokens=max_new_tokens,
        **options,
    )
