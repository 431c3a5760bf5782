"""Stage 2: the decoder learns to read: to answer from entries that it has never seen before.

The tower is frozen by then, so its features are computed once and looked up. Many queries share an episode's entries:
that is what makes
the lessons dense enough for two cores.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from torch.nn.functional import cross_entropy
from transformers import Idefics3ForConditionalGeneration

from embedded_training.episodes import Layout, Lessons, prompt_mask, turn_positions
from embedded_training.pools import Pools
from embedded_training.tower import Heads, features_of
from embedded_training.turn_attention import turn_attention

TAP = 2
"""The decoder layer at whose output the auxiliary loss asks for the picture. Retrieval keys are best taken there."""

MODES = ("prompt", "alone", "answers")


@dataclass(frozen=True)
class Plan:
    """One part of the curriculum: what is taught, how many entries there are, in which modes."""

    kinds: dict[str, float]
    entries: tuple[int, int]
    queries: tuple[int, int]
    modes: dict[str, float]
    episodes: int = 12


FIRST = Plan(
    {"recall": 0.5, "naming": 0.35, "attribute": 0.1, "base": 0.05}, (1, 3), (6, 8), {"prompt": 0.4, "alone": 0.6}, 14
)
SECOND = Plan(
    {"recall": 0.05, "naming": 0.32, "attribute": 0.22, "pair": 0.18, "unit": 0.11, "base": 0.12},
    (2, 6),
    (4, 8),
    {"prompt": 0.3, "alone": 0.4, "answers": 0.3},
)
THIRD = Plan(
    {"recall": 0.02, "naming": 0.34, "attribute": 0.22, "pair": 0.24, "unit": 0.09, "base": 0.09},
    (3, 8),
    (6, 8),
    {"prompt": 0.2, "alone": 0.35, "answers": 0.45},
)


Statistics = tuple[torch.Tensor, torch.Tensor]
"""Mean and standard deviation of each channel of the tower's output: float ``[96]`` each."""


def all_pictures(pools: Pools) -> list[np.ndarray]:
    """The pools' pictures in the order in which a ``Turn`` counts them."""
    return [pools.glyphs.reshape(-1, *pools.glyphs.shape[2:]), pools.scenes, pools.gauges]


def statistics_of(model: Idefics3ForConditionalGeneration, pools: Pools, sample: int = 20_000) -> Statistics:
    """Measured on about ``sample`` pictures, evenly taken from the pools."""
    pictures = np.concatenate(all_pictures(pools))
    features = features_of(model.model.vision_model, pictures[:: max(1, len(pictures) // sample)])
    flat = features.reshape(-1, features.shape[-1])
    return flat.mean(0), flat.std(0)


class Features:
    """What the connector's projection is given for each picture: float ``[pictures, 4, 384]``, centred and scaled."""

    def __init__(self, model: Idefics3ForConditionalGeneration, pools: Pools, statistics: Statistics) -> None:
        mean, deviation = statistics
        parts = [features_of(model.model.vision_model, part) for part in all_pictures(pools)]
        standardised = [((part - mean) / deviation) for part in parts]
        self.table = torch.cat([model.model.connector.pixel_shuffle(part).to(torch.bfloat16) for part in standardised])


def fold_statistics(model: Idefics3ForConditionalGeneration, statistics: Statistics) -> None:
    """Write the centring and scaling into the tower's last layer norm, so that the stock model computes it."""
    mean, deviation = statistics
    norm = model.model.vision_model.post_layernorm
    with torch.no_grad():
        norm.bias.copy_((norm.bias - mean) / deviation)
        norm.weight.div_(deviation)


class Reader(torch.nn.Module):
    """The decoder, its embedding and the connector, run on laid-out episodes."""

    def __init__(self, model: Idefics3ForConditionalGeneration, layout: Layout) -> None:
        super().__init__()
        self.text, self.head = model.model.text_model, model.lm_head
        self.projection = model.model.connector.modality_projection
        self.layout = layout

    def forward(
        self,
        batch: dict[str, np.ndarray],
        features: Features,
        entries: int,
        mode: str,
        noise: torch.Tensor | None = None,
    ):
        """Logits of every answer token, their truth, the turn each belongs to, and the tapped hidden states
        ``[episodes, turns, length, width]``."""
        ids = torch.from_numpy(batch["ids"])
        episodes, turns, length = ids.shape
        positions = turn_positions(batch["kinds"], entries, mode)
        mask = None
        if mode == "prompt":
            sees = torch.from_numpy(prompt_mask(batch["kinds"]))
            mask = torch.zeros(sees.shape, dtype=torch.bfloat16).masked_fill_(~sees, -1e4)[:, None]
        attention = nullcontext() if mode == "prompt" else turn_attention(self.text, batch["kinds"], entries, mode)
        with attention, torch.autocast("cpu", torch.bfloat16):
            embedded = self.text.embed_tokens(ids)
            if batch["pictures"][0, 0] >= 0:
                seen = features.table[torch.from_numpy(batch["pictures"])]
                if noise is not None:
                    seen = seen + noise[:, None, None, None] * torch.randn_like(seen)
                projected = self.projection(seen)
                embedded = embedded.to(projected.dtype)
                # A picture's four tokens stand at the same places in every turn.
                start = self.layout.head.index(self.layout.image)
                embedded = torch.cat([embedded[:, :, :start], projected, embedded[:, :, start + 4 :]], 2)
            states = self.text(
                inputs_embeds=embedded.flatten(1, 2),
                attention_mask=mask,
                position_ids=torch.from_numpy(positions),
                use_cache=False,
                output_hidden_states=True,
            )
            answers = torch.from_numpy(batch["kinds"] == 2)
            before = torch.roll(answers, -1, 2)
            final = states.last_hidden_state.view(episodes, turns, length, -1)
            logits = self.head(final[before])
        tapped = states.hidden_states[TAP].view(episodes, turns, length, -1)
        return logits.float(), ids[answers], answers.nonzero()[:, :2], tapped.float()


def auxiliary_loss(
    heads: Heads, tapped: torch.Tensor, batch: dict[str, np.ndarray], lessons: Lessons, generator
) -> torch.Tensor:
    """The picture, told from the tapped states where an answer begins and along it: matching needs it there."""
    kinds, pictures = batch["kinds"], batch["pictures"]
    begin = (kinds == 1).sum(-1) - 1
    answer = (kinds == 2).sum(-1)
    rows, turns = np.indices(pictures.shape)
    total = torch.zeros(())
    for offset in (np.zeros_like(begin), 1 + generator.integers(0, 10_000, begin.shape) % np.maximum(1, answer - 1)):
        vectors = tapped[torch.from_numpy(rows), torch.from_numpy(turns), torch.from_numpy(begin + offset)]
        for low, high, loss in (
            (0, lessons.first_scene, lambda v, p: heads.glyph_loss(v, p // lessons.drawings)),
            (
                lessons.first_scene,
                lessons.first_gauge,
                lambda v, p: 2 * heads.scene_loss(v, lessons.scene_labels[p - lessons.first_scene]),
            ),
            (
                lessons.first_gauge,
                1 << 30,
                lambda v, p: heads.gauge_loss(v, lessons.gauge_labels[p - lessons.first_gauge]),
            ),
        ):
            chosen = (pictures >= low) & (pictures < high)
            if chosen.any():
                total = total + loss(vectors[torch.from_numpy(chosen)], pictures[chosen]) * float(chosen.mean())
    return total / 2


def accuracy(
    reader: Reader,
    features: Features,
    lessons: Lessons,
    kind: str,
    mode: str,
    entries: int,
    episodes: int = 40,
    queries: int = 4,
) -> float:
    """Share of queries every token of whose answer is the likeliest one."""
    made = [lessons.episode(kind, entries, queries) for _ in range(episodes)]
    batch = reader.layout.lay_out(made)
    with torch.no_grad():
        logits, truth, where, _ = reader(batch, features, entries, mode)
    right = torch.ones(episodes, entries + queries, dtype=torch.bool)
    wrong = logits.argmax(-1) != truth
    right[where[wrong, 0], where[wrong, 1]] = False
    return right[:, entries:].float().mean().item()


@dataclass
class Training:
    """State of stage 2; ``state_dict`` and ``load_state_dict`` make it resumable."""

    model: Idefics3ForConditionalGeneration
    layout: Layout
    features: Features
    lessons: Lessons
    unseen: tuple[Features, Pools]
    steps: int
    seed: int
    learning_rate: float = 1.2e-3
    step: int = 0
    switches: list[int] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.model.model.text_model.set_attn_implementation("eager")
        self.reader = Reader(self.model, self.layout)
        torch.manual_seed(self.seed)
        self.heads = Heads(self.model.config.text_config.hidden_size, self.lessons.classes)
        self.parameters = [p for p in self.reader.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            [
                {"params": self.parameters, "base": self.learning_rate},
                {"params": self.heads.parameters(), "base": 2e-3},
            ],
            weight_decay=0.05,
            betas=(0.9, 0.98),
            foreach=True,
        )
        self.generator = np.random.default_rng([self.seed, 30])

    def state_dict(self) -> dict:
        return {
            "model": self.model.state_dict(),
            "heads": self.heads.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "step": self.step,
            "switches": self.switches,
            "generators": [self.generator.bit_generator.state, self.lessons.generator.bit_generator.state],
        }

    def load_state_dict(self, state: dict) -> None:
        self.model.load_state_dict(state["model"])
        self.heads.load_state_dict(state["heads"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.switches = state["step"], state["switches"]
        self.generator.bit_generator.state, self.lessons.generator.bit_generator.state = state["generators"]

    def plan(self) -> Plan:
        return (FIRST, SECOND, THIRD)[len(self.switches)]

    def one_step(self) -> dict[str, float]:
        g, plan = self.generator, self.plan()
        kind = str(g.choice(list(plan.kinds), p=list(plan.kinds.values())))
        mode = str(g.choice(list(plan.modes), p=list(plan.modes.values())))
        entries = int(g.integers(plan.entries[0], plan.entries[1] + 1))
        if kind == "base" and g.random() < 0.5:
            entries = 0
        if kind == "recall":
            entries = int(g.integers(1, 7))
        queries = int(g.integers(plan.queries[0], plan.queries[1] + 1))
        batch = self.layout.lay_out([self.lessons.episode(kind, entries, queries) for _ in range(plan.episodes)])
        noise = None
        if kind == "naming":
            # Pictures that are no drawings look noisy to the tower; a name is then to be spelled from one entry still.
            strength = g.uniform(0, 1.2, plan.episodes) * (g.random(plan.episodes) < 0.6)
            noise = torch.from_numpy(strength).to(torch.bfloat16)
        logits, truth, where, tapped = self.reader(batch, self.features, entries, mode, noise)
        asked = where[:, 1] >= entries
        loss = cross_entropy(logits[asked], truth[asked])
        auxiliary = torch.zeros(())
        if kind != "recall":
            auxiliary = auxiliary_loss(self.heads, tapped, batch, self.lessons, g)
        since = self.step - self.switches[-1] if self.switches else 0
        weight = 0.5 if not self.switches else max(0.15, 0.5 * (1 - since / 2000)) if len(self.switches) == 1 else 0.15
        for group in self.optimiser.param_groups:
            decay = 0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * self.step / self.steps))
            group["lr"] = group["base"] * min(1.0, (self.step + 1) / 200) * decay
        self.optimiser.zero_grad()
        (loss + weight * auxiliary).backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimiser.step()
        self.step += 1
        return {kind: loss.item()} | ({} if kind == "recall" else {"auxiliary": auxiliary.item()})

    def evaluate(self) -> dict[str, float]:
        features, pools = self.unseen
        lessons = Lessons(pools, np.random.default_rng([self.seed, 40]))

        def measure(kind: str, mode: str, entries: int) -> float:
            return round(accuracy(self.reader, features, lessons, kind, mode, entries), 3)

        figures = {"base": measure("base", "prompt", 0), "two_way": measure("naming", "alone", 2)}
        figures["recall"] = measure("recall", "alone", 5)
        for mode in MODES:
            figures[f"naming_{mode}"] = measure("naming", mode, 5)
        if self.switches:
            for kind in ("attribute", "pair", "unit", "base"):
                for mode in ("prompt", "answers"):
                    figures[f"{kind}_{mode}"] = measure(kind, mode, 8)
        return figures

    def run(self, report: Callable[[int, dict[str, float]], None], every: int = 500) -> None:
        seen: dict[str, list[float]] = {}
        while self.step < self.steps:
            for name, value in self.one_step().items():
                seen.setdefault(name, []).append(value)
            if self.step % every == 0 or self.step == self.steps:
                figures = self.evaluate()
                losses = {f"loss_{name}": round(float(np.mean(values)), 3) for name, values in sorted(seen.items())}
                seen.clear()
                # The next part begins when two-way matching is there, the last when half of the steps are used.
                if (not self.switches and (figures["two_way"] > 0.9 or self.step > 0.3 * self.steps)) or (
                    len(self.switches) == 1 and self.step > 0.4 * self.steps
                ):
                    self.switches.append(self.step)
                report(self.step, {"part": len(self.switches) + 1, **losses, **figures})
