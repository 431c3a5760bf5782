"""Stage 2's lessons: entries that bind made-up names to what is seen, and queries that can only be answered by
reading them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from transformers import PreTrainedTokenizerFast

from embedded_training.pools import Pools
from inducekv.embedded.drawings import HOURS, SCENE_ATTRIBUTES
from inducekv.embedded.questions import BASE, COUNTED, NAMED_ATTRIBUTE, PAIR, UNIT, naming_question
from inducekv.embedded.words import made_up_names, odd_name

ATTRIBUTES = tuple(SCENE_ATTRIBUTES)
KINDS = ("naming", "attribute", "pair", "unit", "base", "recall")
"""What a batch can be about; see the functions of the same names."""


@dataclass
class Turn:
    """One picture, its question and its answer. ``picture`` counts through glyphs, then scenes, then gauges.

    Question and answer are texts, or tokens where any tokens will do. ``picture=None`` (then of the whole batch): no
    picture.
    """

    picture: int | None
    question: str | tuple[int, ...]
    answer: str | tuple[int, ...]


@dataclass
class Episode:
    entries: list[Turn]
    queries: list[Turn]


PLAIN = ("zero", *HOURS, "nine", *SCENE_ATTRIBUTES["colour"], *SCENE_ATTRIBUTES["shape"], *SCENE_ATTRIBUTES["place"])
"""Words of the base skills, which may be names too."""


class Lessons:
    """Draws episodes from the pools. ``generator`` decides everything; ``tokens`` is the range that ``recall`` draws
    from."""

    def __init__(self, pools: Pools, generator: np.random.Generator, tokens: tuple[int, int] = (8, 1024)) -> None:
        self.generator = generator
        self.classes, self.drawings = pools.glyphs.shape[:2]
        self.first_scene = self.classes * self.drawings
        self.first_gauge = self.first_scene + len(pools.scenes)
        self.scene_labels, self.gauge_labels = pools.scene_labels, pools.gauge_labels
        self.scenes_with = {
            (name, value): np.flatnonzero(pools.scene_labels[:, i] == value)
            for i, (name, words) in enumerate(SCENE_ATTRIBUTES.items())
            for value in range(len(words))
        }
        labels = pools.scene_labels
        self.scenes_of_pair = {
            (c, s): np.flatnonzero((labels[:, 0] == c) & (labels[:, 1] == s)) for c in range(8) for s in range(6)
        }
        gauges = pools.gauge_labels
        self.gauges_with = {
            (k, c): np.flatnonzero((gauges[:, 0] == k) & (gauges[:, 1] == c)) for k in range(2) for c in range(8)
        }
        self.first_token, self.last_token = tokens
        self.names = made_up_names(20_000, generator)
        self.short_names = made_up_names(1_500, generator, syllables=1)

    def pick(self, items):
        return items[self.generator.integers(len(items))]

    def some_names(self, number: int) -> list[str]:
        style = self.generator.random()
        if style < 0.12 and number <= len(PLAIN):
            return [PLAIN[i] for i in self.generator.choice(len(PLAIN), number, False)]
        if style < 0.25:
            names: dict[str, None] = {}
            while len(names) < number:
                names[odd_name(self.generator)] = None
            return list(names)
        source = self.short_names if style < 0.4 else self.names
        return [source[i] for i in self.generator.choice(len(source), number, False)]

    def glyph(self, of_class: int) -> int:
        return int(of_class * self.drawings + self.generator.integers(self.drawings))

    def scene(self, indices: np.ndarray | None = None) -> int:
        number = self.generator.integers(len(self.scene_labels)) if indices is None else self.pick(indices)
        return int(self.first_scene + number)

    def label(self, picture: int, attribute: str) -> int:
        return int(self.scene_labels[picture - self.first_scene, ATTRIBUTES.index(attribute)])

    def episode(self, kind: str, entries: int, queries: int) -> Episode:
        return getattr(self, kind)(entries, queries)

    def recall(self, entries: int, queries: int) -> Episode:
        """No pictures: cues and answers of any tokens. The cheapest lesson in finding the right entry and copying
        it."""
        g = self.generator

        def tokens(least: int, most: int) -> tuple[int, ...]:
            return tuple(g.integers(self.first_token, self.last_token, g.integers(least, most + 1)).tolist())

        turns = [Turn(None, tokens(2, 3), tokens(1, 4)) for _ in range(max(1, entries))]
        return Episode(turns, [turns[i] for i in g.integers(0, len(turns), queries)])

    def naming(self, entries: int, queries: int) -> Episode:
        """Pictures of a few classes under names that hold for this episode alone."""
        g = self.generator
        number = int(g.integers(2, max(3, entries + 1))) if entries > 2 else entries
        classes = g.choice(self.classes, number, False)
        names = self.some_names(number)
        question = naming_question(g)
        order = np.concatenate([np.arange(number), g.integers(0, number, max(0, entries - number))])[:entries]
        g.shuffle(order)
        asked = g.choice(np.unique(order), queries)
        turns = [Turn(self.glyph(classes[o]), question, names[o]) for o in [*order, *asked]]
        return Episode(turns[:entries], turns[entries:])

    def attribute(self, entries: int, queries: int) -> Episode:
        """Scenes that differ in everything; one attribute of each is named, and the question says which."""
        g = self.generator
        several = g.random() < 0.4
        asked_of = [self.pick(ATTRIBUTES) for _ in range(1 + several)]
        names = {a: self.some_names(len(SCENE_ATTRIBUTES[a])) for a in set(asked_of)}
        wording = {a: self.pick(NAMED_ATTRIBUTE[a]) for a in names}
        turns = []
        for i in range(entries):
            attribute = asked_of[i % len(asked_of)]
            picture = self.scene()
            turns.append(Turn(picture, wording[attribute], names[attribute][self.label(picture, attribute)]))
        g.shuffle(turns)
        known = [(a, self.label(t.picture, a)) for t in turns for a in names if wording[a] == t.question]
        asked = []
        for _ in range(queries):
            attribute, value = self.pick(known)
            asked.append(
                Turn(self.scene(self.scenes_with[attribute, value]), wording[attribute], names[attribute][value])
            )
        return Episode(turns, asked)

    def pair(self, entries: int, queries: int) -> Episode:
        """Two-word names, a word for the colour and one for the shape; asked are pairs that no entry holds."""
        g = self.generator
        side = 2 if entries < 5 else int(g.integers(2, 4 if entries < 7 else 5))
        colours, shapes = g.choice(8, side, False), g.choice(6, side, False)
        words = (
            self.some_names(2 * side)
            if g.random() < 0.3
            else [self.names[i] for i in g.choice(len(self.names), 2 * side, False)]
        )
        colour_word, shape_word = (
            dict(zip(colours, words[:side], strict=True)),
            dict(zip(shapes, words[side:], strict=True)),
        )
        question = self.pick(PAIR)
        cells = [(c, s) for c in colours for s in shapes]
        g.shuffle(cells)
        cells = [tuple(cell) for cell in cells]
        # Hold out a pair whose colour and shape both stay visible in other cells.
        held = cells[0]
        shown = cells[1:]
        must = [self.pick([c for c in shown if c[0] == held[0]]), self.pick([c for c in shown if c[1] == held[1]])]
        rest = [shown[i] for i in g.integers(0, len(shown), max(0, entries - 2))]
        chosen = (must + rest)[:entries]
        g.shuffle(chosen)
        chosen = [tuple(c) for c in chosen]

        def turn(cell: tuple[int, int]) -> Turn:
            return Turn(
                self.scene(self.scenes_of_pair[cell]), question, f"{colour_word[cell[0]]} {shape_word[cell[1]]}"
            )

        seen_colours, seen_shapes = {c for c, _ in chosen}, {s for _, s in chosen}
        askable = [c for c in cells if c not in chosen and c[0] in seen_colours and c[1] in seen_shapes] or [held]
        asked = [turn(self.pick(askable)) if g.random() < 0.8 else turn(self.pick(chosen)) for _ in range(queries)]
        return Episode([turn(c) for c in chosen], asked)

    def unit(self, entries: int, queries: int) -> Episode:
        """A number that the picture shows, then a made-up word: a unit told by the gauge's colour, or the name of the
        shape counted."""
        g = self.generator
        if g.random() < 0.5:
            question, keys, names = self.pick(COUNTED), g.choice(6, min(6, 1 + entries // 2), False), self.some_names(6)

            def turn(key: int) -> Turn:
                picture = self.scene(self.scenes_with["shape", key])
                return Turn(picture, question, f"{HOURS[self.label(picture, 'count')]} {names[key]}")
        else:
            kind = int(g.integers(2))
            question, keys, names = self.pick(UNIT), g.choice(8, min(8, 1 + entries // 2), False), self.some_names(8)

            def turn(key: int) -> Turn:
                row = int(self.pick(self.gauges_with[kind, key]))
                return Turn(self.first_gauge + row, question, f"{HOURS[self.gauge_labels[row, 2]]} {names[key]}")

        order = np.concatenate([keys, g.choice(keys, max(0, entries - len(keys)))])[:entries]
        g.shuffle(order)
        return Episode([turn(k) for k in order], [turn(k) for k in g.choice(np.unique(order), queries)])

    def base(self, entries: int, queries: int) -> Episode:
        """A plain question about the picture; the entries, if any, are about something else and must not disturb it."""
        around = self.episode(self.pick(KINDS[:4]), entries, 1).entries if entries else []
        return Episode(around, [self.base_turn() for _ in range(queries)])

    def base_turn(self) -> Turn:
        skill = self.pick(tuple(BASE))
        question = self.pick(BASE[skill])
        if skill == "level":
            row = int(self.generator.integers(len(self.gauge_labels)))
            return Turn(self.first_gauge + row, question, HOURS[self.gauge_labels[row, 2]])
        picture = self.scene()
        return Turn(picture, question, SCENE_ATTRIBUTES[skill][self.label(picture, skill)])


class Layout:
    """Turns to token arrays. Every turn of a batch is padded to the same length, so that masks are cheap to make."""

    def __init__(self, tokenizer: PreTrainedTokenizerFast) -> None:
        self.tokenizer = tokenizer
        self.image = tokenizer.convert_tokens_to_ids("<image>")
        around = tokenizer.convert_tokens_to_ids("<fake_token_around_image>")
        head = [tokenizer.convert_tokens_to_ids("<|user|>"), around, tokenizer.convert_tokens_to_ids("<global-img>")]
        self.head = [*head, *[self.image] * 4, around]
        self.assistant, self.end = tokenizer.convert_tokens_to_ids("<|assistant|>"), tokenizer.eos_token_id
        self.known: dict[str, list[int]] = {}

    def tokens(self, text: str | tuple[int, ...]) -> list[int]:
        if isinstance(text, tuple):
            return list(text)
        if text not in self.known:
            if len(self.known) > 200_000:
                self.known.clear()
            self.known[text] = self.tokenizer(text, add_special_tokens=False).input_ids
        return self.known[text]

    def lay_out(self, episodes: list[Episode]) -> dict[str, np.ndarray]:
        """``ids``, ``kinds`` (0 padding, 1 question side, 2 answer) ``[episodes, turns, length]``; ``pictures``
        ``[episodes, turns]``."""
        rows = [[*e.entries, *e.queries] for e in episodes]
        pictured = rows[0][0].picture is not None
        head = self.head if pictured else self.head[:1]
        parts = [
            [(head + self.tokens(t.question) + [self.assistant], [*self.tokens(t.answer), self.end]) for t in row]
            for row in rows
        ]
        length = max(len(q) + len(a) for row in parts for q, a in row)
        ids = np.full((len(rows), len(rows[0]), length), self.tokenizer.pad_token_id, np.int64)
        kinds = np.zeros(ids.shape, np.int8)
        for b, row in enumerate(parts):
            for s, (question, answer) in enumerate(row):
                ids[b, s, : len(question)] = question
                kinds[b, s, : len(question)] = 1
                ids[b, s, len(question) : len(question) + len(answer)] = answer
                kinds[b, s, len(question) : len(question) + len(answer)] = 2
        return {
            "ids": ids,
            "kinds": kinds,
            "pictures": np.array([[-1 if t.picture is None else t.picture for t in row] for row in rows]),
        }


def turn_positions(kinds: np.ndarray, entries: int, mode: str) -> np.ndarray:
    """Positions ``[episodes, tokens]``: turns one after another; but for ``prompt``, every query stands right behind
    the last entry."""
    count = (kinds > 0).sum(-1)
    starts = np.cumsum(count, 1) - count
    if mode != "prompt":
        starts[:, entries:] = count[:, :entries].sum(1, keepdims=True)
    within = np.maximum(np.cumsum(kinds > 0, -1) - 1, 0)
    return (within + starts[..., None]).reshape(len(kinds), -1)


def prompt_mask(kinds: np.ndarray) -> np.ndarray:
    """Who sees whom when all turns are one conversation: bool ``[episodes, tokens, tokens]``."""
    real = kinds.reshape(len(kinds), -1) > 0
    order = np.arange(real.shape[1])
    return ((order[:, None] >= order[None]) & real[:, None]) | np.eye(len(order), dtype=bool)
