"""The demo's experiment: its stream and the methods it compares, shared by the command and the benchmark."""

from __future__ import annotations

from inducekv.backbone import Backbone
from inducekv.continual.methods.base import Method
from inducekv.continual.methods.inducekv import InduceKV
from inducekv.continual.methods.nearest_neighbour import NearestNeighbour
from inducekv.continual.methods.sequential_lora import SequentialLora
from inducekv.continual.methods.zero_shot import ZeroShot
from inducekv.continual.stream import Stream
from inducekv.embedded.tasks import demo_stream
from inducekv.model import InducedModel


def stream_of_demo(seed: int) -> Stream:
    """Six tasks whose classes and names the embedded model has never seen."""
    return Stream.from_tasks(demo_stream(seed))


def methods_of_demo(backbone: Backbone, budget: int, seed: int) -> tuple[list[Method], InducedModel]:
    """Zero-shot, sequential LoRA, InduceKV and label copy over InduceKV's entries, each within `budget` bytes."""
    model = InducedModel.from_pretrained(backbone, config={"budget": budget, "seed": seed})
    methods = [
        ZeroShot(backbone),
        SequentialLora(backbone, budget, seed=seed),
        InduceKV(model),
        NearestNeighbour(model),
    ]
    return methods, model
