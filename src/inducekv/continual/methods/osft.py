"""OSFT: the smallest singular directions of each weight are trained, away from all others and from earlier tasks'."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from inducekv.continual.ledger import HALF, Dimensions, LoraSize, Shape
from inducekv.continual.methods.adapter import AdapterMethod
from inducekv.continual.methods.training import Recipe, TrainingBatch


class Osft(AdapterMethod):
    """PEFT's OSF (Nayak et al. 2025, "Sculpting Subspaces"): W = high + U S V, high frozen, U, S, V of `rank` trained.

    PEFT keeps gradients orthogonal to the frozen directions. Before task t + 1 of T the trained part is decomposed anew
    and its rank · t / T largest directions, which earlier tasks made large, are frozen too. CHOICE: a linear schedule.

    The frozen part is found from the checkpoint by a singular value decomposition whenever it is attached, so only U, S
    and V are stored. That takes long on large models.
    """

    name = "osft"
    title = "OSFT"
    recipe = Recipe(learning_rate=1e-2)

    @staticmethod
    def per_rank(shape: Shape) -> int:
        """A column of U, a row of V, and a singular value."""
        return sum(shape) + 1

    @classmethod
    def solve(cls, dimensions: Dimensions, budget: int, stream_length: int = 1) -> LoraSize:
        wide = {name: shape for name, shape in dimensions.linears.items() if min(shape) > 1}
        size = super().solve(replace(dimensions, linears=wide), budget, stream_length)
        rank = min(size.rank, *(min(wide[name]) - 1 for name in size.modules))  # PEFT freezes one direction at least
        return LoraSize(size.modules, rank, rank * HALF * sum(cls.per_rank(wide[name]) for name in size.modules))

    def _config(self) -> Any:
        linears = self._dimensions.linears
        frozen = {f"^{re.escape(name)}$": min(linears[name]) - self.size.rank for name in self.size.modules}
        return self._peft.OSFConfig(target_modules=list(self.size.modules), rank_pattern=frozen)

    def _begin(self, module: nn.Module, batches: Sequence[TrainingBatch]) -> None:
        held = min(self.size.rank * self.learned // max(1, self._stream_length), self.size.rank - 1)
        if not held:
            return
        for layer in module.modules():
            if isinstance(layer, self._peft.tuners.osf.OSFLayer):
                for low in layer.osf_svd_params.values():
                    _decompose_anew(low)
                    _hold(low, held)


@torch.no_grad()
def _decompose_anew(low: nn.ParameterDict) -> None:
    """The same U S V with orthonormal directions, the largest first."""
    left, upper = torch.linalg.qr((low["U_low"] * low["S_low"]).float())
    right, lower = torch.linalg.qr(low["V_low"].T.float())
    turn, values, back = torch.linalg.svd(upper @ lower.T)
    low["U_low"].copy_(left @ turn)
    low["S_low"].copy_(values)
    low["V_low"].copy_(back @ right.T)


def _hold(low: nn.ParameterDict, held: int) -> None:
    """Keeps the first `held` directions as they are, and gradients of the others orthogonal to them."""
    left, right = low["U_low"].detach()[:, :held].clone(), low["V_low"].detach()[:held].clone()
    free = (torch.arange(len(low["S_low"]), device=left.device) >= held).to(left)
    low["U_low"].register_hook(lambda gradient: (gradient - left @ (left.T @ gradient)) * free)
    low["V_low"].register_hook(lambda gradient: (gradient - (gradient @ right.T) @ right) * free[:, None])
    low["S_low"].register_hook(lambda gradient: gradient * free)
