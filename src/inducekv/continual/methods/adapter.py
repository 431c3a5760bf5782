"""Methods that train a PEFT adapter: attached to the model's linears while they learn or answer, gone in between."""

from __future__ import annotations

import warnings
from abc import abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from inducekv.continual.ledger import Dimensions, Ledger, LoraSize, Shape, adapter_nbytes, lora_numbers, solve_size
from inducekv.continual.methods.trained import TrainedMethod, frozen, put


class AdapterMethod(TrainedMethod):
    """An adapter of one rank on some of the text model's linears: `_config` says which of PEFT's it is."""

    size: LoraSize
    experts: ClassVar[int] = 1
    """The rank is a multiple of this."""

    @abstractmethod
    def _config(self) -> Any:
        """PEFT's configuration of the adapter."""

    def _shape(self, adapted: nn.Module) -> None:
        """Changes a newly attached adapter's modules."""

    @staticmethod
    def per_rank(shape: Shape) -> int:
        """Numbers that one rank takes on a linear."""
        return lora_numbers(shape)

    @staticmethod
    def fixed(shape: Shape) -> int:
        """Numbers that an adapter takes on a linear whatever its rank."""
        return 0

    @classmethod
    def solve(cls, dimensions: Dimensions, budget: int, stream_length: int = 1) -> LoraSize:
        return solve_size(
            dimensions.linears, budget, per_rank=cls.per_rank, fixed=cls.fixed, multiple=cls._multiple(stream_length)
        )

    @classmethod
    def _multiple(cls, stream_length: int) -> int:
        return cls.experts

    def ledger(self) -> Ledger:
        """2 · Σ over linears (rank · per_rank + fixed)."""
        return Ledger(self._adapter_nbytes() if self.weights else 0)

    def _adapter_nbytes(self) -> int:
        return adapter_nbytes(self.size, self._dimensions.linears, per_rank=self.per_rank, fixed=self.fixed)

    def describe(self) -> dict[str, Any]:
        return {"rank": self.size.rank, "modules": len(self.size.modules), **super().describe()}

    @contextmanager
    def attached(self, weights: Mapping[str, Tensor] | None) -> Iterator[nn.Module]:
        model = self._backbone.model
        extra = set(vars(model))
        with frozen(model):
            with torch.random.fork_rng(), warnings.catch_warnings():
                warnings.simplefilter("ignore", FutureWarning)  # of PEFT's, about names in transformers
                torch.manual_seed(self._seed)
                adapted = self._peft.get_peft_model(model, self._config())
            try:
                with torch.random.fork_rng():
                    torch.manual_seed(self._seed)
                    self._shape(adapted)
                if weights is not None:
                    put(self._kept(adapted), weights)
                yield adapted
            finally:
                adapted.unload()
                for attribute in set(vars(model)) - extra:
                    delattr(model, attribute)
