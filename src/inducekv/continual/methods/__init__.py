"""The compared methods, one file each, and the table of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from inducekv.backbone import Backbone
from inducekv.config import InduceKVConfig
from inducekv.continual.catalogue import ABLATIONS, CATALOGUE
from inducekv.continual.methods.base import Method as Method
from inducekv.continual.methods.base import MethodKind as MethodKind
from inducekv.continual.methods.cartridge import Cartridge
from inducekv.continual.methods.ewc_lora import EwcLora
from inducekv.continual.methods.individual_lora import IndividualLora
from inducekv.continual.methods.inducekv import InduceKV
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


def _row(
    method: type[Method], make: Callable[..., Method], needs: str | None = None, name: str | None = None
) -> MethodKind:
    name = name or method.name
    listed = CATALOGUE[name]
    return MethodKind(name, listed.title, listed.summary, method, needs, make, listed.only_named)


def _trained(method: type[TrainedMethod]) -> MethodKind:
    return _row(method, _trains(method), needs="peft")


METHODS: dict[str, MethodKind] = {
    kind.name: kind
    for kind in (
        _row(ZeroShot, _zero_shot),
        _row(NearestNeighbour, _nearest_neighbour),
        _row(RetrievedPrompt, _retrieved_prompt),
        _row(MaskedPrompt, _masked_prompt),
        _trained(IndividualLora),
        _trained(JointLora),
        _trained(SequentialLora),
        _trained(ReplayLora),
        _trained(EwcLora),
        _trained(LwfLora),
        _trained(OLora),
        _trained(MoELora),
        _trained(Osft),
        _trained(PromptTuning),
        _trained(L2P),
        _trained(Cartridge),
        _row(InduceKV, _inducekv()),
        *(_row(InduceKV, _inducekv(name), name=f"inducekv/{name}") for name in ABLATIONS),
    )
}
"""Every method by the name it is asked for, in the order of `CATALOGUE`."""


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
