"""Stage 1: the vision tower learns to tell drawn classes apart and to read every attribute of a scene.

Without this stage the decoder never finds the pictures: see the model card.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch.nn.functional import cross_entropy, normalize

from embedded_training.pools import Pools
from inducekv.embedded.drawings import SCENE_ATTRIBUTES

BATCH = {"glyphs": 88, "scenes": 64, "gauges": 16}


def pixels(pictures: np.ndarray) -> torch.Tensor:
    """``uint8 [n, 32, 32, 3]`` to what the image processor gives: float ``[n, 3, 32, 32]`` in -1..1."""
    return torch.from_numpy(pictures).float().div(127.5).sub(1).permute(0, 3, 1, 2)


class Heads(torch.nn.Module):
    """Linear read-outs of everything a drawing shows, from one vector; thrown away after training."""

    def __init__(self, width: int, classes: int) -> None:
        super().__init__()
        self.sizes = [len(words) for words in SCENE_ATTRIBUTES.values()]
        self.glyph = torch.nn.Linear(width, classes)
        self.scene = torch.nn.Linear(width, sum(self.sizes))
        self.gauge = torch.nn.Linear(width, 8 + 8 + 8)  # colour, level of a bar, hour of a clock

    def glyph_loss(self, features: torch.Tensor, classes: np.ndarray) -> torch.Tensor:
        return cross_entropy(self.glyph(features), torch.from_numpy(classes))

    def scene_loss(self, features: torch.Tensor, labels: np.ndarray) -> torch.Tensor:
        """Shape is the hardest to see at 32 pixels, so it counts for three."""
        outputs = self.scene(features).split(self.sizes, -1)
        weights = [3.0 if name == "shape" else 1.0 for name in SCENE_ATTRIBUTES]
        losses = [
            w * cross_entropy(o, torch.from_numpy(labels[:, i]))
            for i, (o, w) in enumerate(zip(outputs, weights, strict=True))
        ]
        return torch.stack(losses).sum() / sum(weights)

    def gauge_loss(self, features: torch.Tensor, labels: np.ndarray) -> torch.Tensor:
        colour, bar, clock = self.gauge(features).split(8, -1)
        truth = torch.from_numpy(labels)
        level = torch.where(truth[:, :1] == 0, bar, clock)
        return (cross_entropy(colour, truth[:, 1]) + cross_entropy(level, truth[:, 2])) / 2

    def scene_accuracy(self, features: torch.Tensor, labels: np.ndarray) -> list[float]:
        outputs = self.scene(features).split(self.sizes, -1)
        return [float((o.argmax(-1).numpy() == labels[:, i]).mean()) for i, o in enumerate(outputs)]


def features_of(tower: torch.nn.Module, pictures: np.ndarray, batch: int = 400) -> torch.Tensor:
    """The tower's output for many pictures, without gradients: float ``[n, patches, width]``."""
    with torch.no_grad():
        return torch.cat(
            [tower(pixels(pictures[i : i + batch])).last_hidden_state for i in range(0, len(pictures), batch)]
        )


def evaluate(tower: torch.nn.Module, heads: Heads, unseen: Pools) -> dict[str, object]:
    """20-way 1-shot on classes never trained on, and every attribute of new scenes."""
    first_two = unseen.glyphs[:, :2]
    vectors = features_of(tower, first_two.reshape(-1, *first_two.shape[2:])).flatten(1)
    vectors = normalize(vectors - vectors.mean(0), dim=-1).view(len(first_two), 2, -1)
    generator = np.random.default_rng(0)
    hits = []
    for _ in range(50):
        k = generator.choice(len(first_two), 20, False)
        hits.append((vectors[k, 1] @ vectors[k, 0].T).argmax(-1).eq(torch.arange(20)).float().mean().item())
    with torch.no_grad():
        scene = heads.scene_accuracy(features_of(tower, unseen.scenes).mean(1), unseen.scene_labels)
    return {
        "glyphs_20way": round(float(np.mean(hits)), 3),
        "scene": dict(zip(SCENE_ATTRIBUTES, [round(a, 3) for a in scene], strict=True)),
    }


def train_tower(
    tower: torch.nn.Module,
    pools: Pools,
    unseen: Pools,
    steps: int,
    seed: int,
    report: Callable[[int, dict[str, object]], None],
    checkpoint: Path | None = None,
    learning_rate: float = 2e-3,
) -> None:
    """Train ``tower`` in place. ``report(step, figures)`` is called every 500 steps; so often ``checkpoint`` is
    written, and read at the start."""
    torch.manual_seed(seed)
    generator = np.random.default_rng([seed, 10])
    heads = Heads(tower.config.hidden_size, len(pools.glyphs))
    parameters = [*tower.parameters(), *heads.parameters()]
    optimiser = torch.optim.AdamW(parameters, weight_decay=0.02, foreach=True)
    losses: list[float] = []
    first = 0
    if checkpoint is not None and checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        tower.load_state_dict(state["tower"])
        heads.load_state_dict(state["heads"])
        optimiser.load_state_dict(state["optimiser"])
        first = state["step"]
        generator = np.random.default_rng([seed, 10, first])
    for step in range(first, steps):
        for group in optimiser.param_groups:
            warm = min(1.0, (step + 1) / 200)
            group["lr"] = learning_rate * warm * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        classes = generator.integers(0, len(pools.glyphs), BATCH["glyphs"])
        scenes = generator.integers(0, len(pools.scenes), BATCH["scenes"])
        gauges = generator.integers(0, len(pools.gauges), BATCH["gauges"])
        drawings = pools.glyphs[classes, generator.integers(0, pools.glyphs.shape[1], len(classes))]
        batch = pixels(np.concatenate([drawings, pools.scenes[scenes], pools.gauges[gauges]]))
        with torch.autocast("cpu", torch.bfloat16):
            output = tower(batch).last_hidden_state
        glyph, scene, gauge = output.float().mean(1).split(list(BATCH.values()))
        loss = heads.glyph_loss(glyph, classes) + 2 * heads.scene_loss(scene, pools.scene_labels[scenes])
        loss = loss + 0.5 * heads.gauge_loss(gauge, pools.gauge_labels[gauges])
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimiser.step()
        losses.append(loss.item())
        if (step + 1) % 500 == 0 or step + 1 == steps:
            if checkpoint is not None:
                state = {
                    "tower": tower.state_dict(),
                    "heads": heads.state_dict(),
                    "optimiser": optimiser.state_dict(),
                    "step": step + 1,
                }
                torch.save(state, checkpoint.with_suffix(".new"))
                checkpoint.with_suffix(".new").replace(checkpoint)
            report(step + 1, {"loss": round(float(np.mean(losses[-500:])), 3), **evaluate(tower, heads, unseen)})
