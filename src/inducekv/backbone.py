"""A frozen Hugging Face vision-language model with its processor: encode, score answers, generate."""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from operator import attrgetter
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Float32
from torch import Tensor, nn
from torch.nn.functional import normalize
from transformers import AutoConfig, AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, DynamicCache

from inducekv.attention import Attachment, attached
from inducekv.config import KeyPool
from inducekv.encoded import ANSWER, IMAGE, TEXT, Encoded
from inducekv.examples import Example
from inducekv.families import FAMILIES, family_of, rotation
from inducekv.injection import Injection
from inducekv.progress import SILENT, Progress
from inducekv.rendering import Batch, Prepared, Rendered, pad, render
from inducekv.rope import rotate_keys

RowsInjection = Injection | Callable[[Tensor], Injection | None] | None
"""Memory for a whole list of examples, or a function that gives it for some of the rows (indices `[batch]`)."""


@dataclass(frozen=True)
class Scores:
    """How well the model predicts given answers.

    Attributes:
        nll: `[n]` negative log-likelihood in nats, mean over an answer's tokens.
        token_nll: `[n, max_answer]` of each answer token, answers aligned at the end; 0 where padded.
        token_mask: `[n, max_answer]` True at answer tokens.
    """

    nll: Float[Tensor, "n"]
    token_nll: Float[Tensor, "n max_answer"]
    token_mask: Bool[Tensor, "n max_answer"]


class Backbone:
    """A model that never changes: its parameters are read, never written, and nothing is left on it.

    Attributes:
        model, processor: the Hugging Face objects. A processor needs `apply_chat_template`, `__call__(text=, images=,
            return_tensors=)` and `tokenizer`.
        family: the row of `families.FAMILIES`.
        layers, kv_heads, head_dim, hidden_size: sizes of the text decoder.

    Raises:
        ValueError: the model's family is not supported.
    """

    def __init__(self, model: nn.Module, processor: Any) -> None:
        self.family = family_of(model)
        self.model: Any = model.eval()
        self.processor = processor
        self.text_model: Any = self.family.text(model)
        config = self.text_model.config
        self.layers = len(self.text_model.layers)
        self.kv_heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        self.hidden_size = int(config.hidden_size)
        self.head_dim = int(getattr(config, "head_dim", None) or self.hidden_size // config.num_attention_heads)
        self._weight_hash: str | None = None

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, **options: Any) -> "Backbone":
        """Load a model and its processor; `options` go to the model's `from_pretrained`.

        Raises:
            ValueError: the family is not supported.
            OSError: no such model.
        """
        kind = AutoConfig.from_pretrained(name_or_path).model_type
        if kind not in FAMILIES:
            raise ValueError(
                f"model family {kind!r} of {name_or_path} is not supported; supported: {', '.join(FAMILIES)}"
            )
        auto = AutoModelForCausalLM if FAMILIES[kind].image_token is None else AutoModelForImageTextToText
        return cls(auto.from_pretrained(name_or_path, **options), AutoProcessor.from_pretrained(name_or_path))

    @property
    def device(self) -> torch.device:
        return self.model.device

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    # -- preparing

    def prepare(
        self,
        examples: Sequence[Example],
        with_answer: bool,
        *,
        embed: bool = False,
        batch_size: int = 32,
        progress: Progress = SILENT,
    ) -> Prepared:
        """Render, sort by length and pad, once for many runs.

        Args:
            examples: at least one; with an answer each if `with_answer`.
            with_answer: include the answers (to score or encode), or end with the generation prompt (to answer).
            embed: also run everything before the text decoder (vision tower, embeddings), so that repeated scoring
                only runs the decoder.
            batch_size: rows in a batch.

        Raises:
            ValueError: no examples, a missing answer, an unreadable picture, `embed` for a model whose decoder reads
                its input some other way.
        """
        if not examples:
            raise ValueError("no examples given; at least one is needed")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        ends, rendered = self._end_tokens(), []
        progress.start("reading examples", len(examples))
        for example in examples:
            rendered.append(render(self.processor, example, with_answer, ends))
            progress.advance()
        progress.stop()
        order = sorted(range(len(rendered)), key=lambda i: rendered[i].tokens)
        batches = []
        for start in range(0, len(order), batch_size):
            batch = self._batch(order[start : start + batch_size], rendered)
            batches.append(replace(batch, text_inputs=self._text_inputs(batch.inputs)) if embed else batch)
        return Prepared(tuple(batches), len(rendered), max(r.answer_length for r in rendered))

    def _batch(self, rows: list[int], rendered: list[Rendered]) -> Batch:
        chosen = [rendered[i] for i in rows]
        inputs = pad(chosen, self._pad_token(), self.device, self.dtype)
        lengths = torch.tensor([r.answer_length for r in chosen], device=self.device)
        return Batch(torch.tensor(rows), inputs, lengths)

    def _pad_token(self) -> int:
        pad_token = self.processor.tokenizer.pad_token_id
        return int(pad_token if pad_token is not None else min(self._end_tokens(), default=0))

    def _end_tokens(self) -> frozenset[int]:
        ends = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        ends = ends if isinstance(ends, list | tuple) else [ends]
        return frozenset(int(e) for e in (*ends, self.processor.tokenizer.eos_token_id) if e is not None)

    @torch.no_grad()
    def _text_inputs(self, inputs: dict[str, Tensor]) -> dict[str, Any]:
        """What the whole model would hand to its text decoder: run the model and stop at the decoder's door."""
        arguments = dict(inputs)
        if "position_ids" not in arguments:
            positions = self.family.positions(inputs)
            arguments |= {} if positions is None else {"position_ids": positions}
        door = self.text_model.register_forward_pre_hook(_stop_at_the_door, with_kwargs=True)
        try:
            with self._state_kept():
                self.model(**arguments, use_cache=False)
        except _AtTheDoor as reached:
            kept = {k: v for k, v in reached.arguments.items() if v is not None and k not in _NOT_KEPT}
            return {**kept, "attention_mask": inputs["attention_mask"]}
        finally:
            door.remove()
        raise ValueError(f"the {type(self.model).__name__} never called its text decoder {self.family.text_model!r}")

    @contextmanager
    def _state_kept(self) -> Iterator[None]:
        """Put back what the family remembers between calls (Qwen-VL's rope_deltas)."""
        owners = [path.rpartition(".") for path in self.family.state]
        before = [(attrgetter(owner)(self.model), name) for owner, _, name in owners]
        values = [getattr(owner, name, None) for owner, name in before]
        try:
            yield
        finally:
            for (owner, name), value in zip(before, values, strict=True):
                setattr(owner, name, value)

    def _decode(self, batch: Batch, **options: Any) -> Any:
        """One pass of the text decoder over a batch."""
        inputs = batch.text_inputs if batch.text_inputs is not None else self._text_inputs(batch.inputs)
        return self.text_model(**inputs, **options)

    # -- encoding

    @torch.no_grad()
    def encode(
        self,
        examples: Sequence[Example],
        *,
        key_layer: int | None = None,
        key_pool: KeyPool = "last",
        batch_size: int = 32,
        progress: Progress = SILENT,
    ) -> list[Encoded]:
        """One frozen pass over question and answer of every example, each encoded alone (InduceKV, specs section 1).

        Args:
            examples: each with an answer.
            key_layer: hidden state of the retrieval key, 0 (embeddings) to `layers`; None: the last.
            key_pool: `"last"` token before the answer, or `"mean"` over all of them.

        Raises:
            ValueError: as `prepare`, and for a `key_layer` out of range.
        """
        prepared = self.prepare(examples, True, batch_size=batch_size)
        encoded: list[Encoded | None] = [None] * prepared.count
        progress.start("encoding examples", prepared.count)
        for batch in prepared.batches:
            text_inputs = self._text_inputs(batch.inputs)
            with attached(self, None):
                output = self.text_model(
                    **text_inputs, past_key_values=DynamicCache(), use_cache=True, **self._tap(key_layer)
                )
            real = batch.inputs["attention_mask"].bool()
            keys = self._pool(output, key_layer, key_pool, real & ~batch.answer_mask)
            kinds = self._kinds(batch)
            first, last = self._extent(text_inputs, real)
            cos, sin = rotation(self.family, self.text_model, -(last + 1))
            layers = output.past_key_values.layers
            shifted = [rotate_keys(layer.keys, cos[:, None, None], sin[:, None, None]) for layer in layers]
            for i, row in enumerate(batch.rows.tolist()):
                encoded[row] = Encoded(
                    key=keys[i],
                    keys=torch.stack([k[i][:, real[i]] for k in shifted]),
                    values=torch.stack([layer.values[i][:, real[i]] for layer in layers]),
                    kinds=kinds[i][real[i]],
                    span=int(last[i] - first[i]) + 1,
                    answer_length=int(batch.answer_lengths[i]),
                )
            progress.advance(len(batch.rows))
        progress.stop()
        return [e for e in encoded if e is not None]

    def _kinds(self, batch: Batch) -> Tensor:
        ids = batch.inputs["input_ids"]
        kinds = torch.full_like(ids, TEXT, dtype=torch.int8)
        if self.family.image_token is not None:
            kinds[ids == getattr(self.model.config, self.family.image_token)] = IMAGE
        kinds[batch.answer_mask] = ANSWER
        return kinds

    def _extent(self, text_inputs: dict[str, Any], real: Tensor) -> tuple[Tensor, Tensor]:
        """First and last position `[rows]` of each row's real tokens, over all axes of the position ids."""
        positions = text_inputs.get("position_ids")
        if positions is None:
            positions = torch.arange(real.shape[1], device=real.device).expand(real.shape)
        positions = positions.expand(*positions.shape[:-2], *real.shape)
        axes = positions.reshape(-1, *real.shape)
        far = torch.iinfo(axes.dtype).max
        return axes.masked_fill(~real, far).amin((0, 2)), axes.masked_fill(~real, -1).amax((0, 2))

    def query_keys(
        self,
        examples: Sequence[Example],
        *,
        key_layer: int | None = None,
        key_pool: KeyPool = "last",
        batch_size: int = 32,
        progress: Progress = SILENT,
    ) -> Float32[Tensor, "n hidden"]:
        """Retrieval keys of questions: the same function that gave the entries theirs. `[n, hidden]`, unit norm."""
        prepared = self.prepare(examples, False, batch_size=batch_size)
        keys = torch.empty(prepared.count, self.hidden_size, device=self.device)
        progress.start("reading questions", prepared.count)
        for batch in prepared.batches:
            keys[batch.rows] = self.query_keys_from_inputs(key_layer=key_layer, key_pool=key_pool, **batch.inputs)
            progress.advance(len(batch.rows))
        progress.stop()
        return keys

    @torch.no_grad()
    def query_keys_from_inputs(
        self, *, key_layer: int | None = None, key_pool: KeyPool = "last", **inputs: Any
    ) -> Float32[Tensor, "rows hidden"]:
        """Retrieval keys `[rows, hidden]` of model inputs that end with a generation prompt, padded on either side."""
        inputs = {name: x for name, x in inputs.items() if x is not None}
        if "attention_mask" not in inputs:
            tokens = inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"][..., 0]
            inputs["attention_mask"] = torch.ones_like(tokens, dtype=torch.long)
        text_inputs = self._text_inputs(inputs)
        with attached(self, None):
            output = self.text_model(**text_inputs, use_cache=False, **self._tap(key_layer))
        return self._pool(output, key_layer, key_pool, inputs["attention_mask"].bool())

    def _tap(self, key_layer: int | None) -> dict[str, bool]:
        if key_layer is not None and not 0 <= key_layer <= self.layers:
            raise ValueError(f"key_layer must be between 0 and {self.layers} for this model, got {key_layer}")
        return {} if key_layer in (None, self.layers) else {"output_hidden_states": True}

    def _pool(self, output: Any, key_layer: int | None, key_pool: KeyPool, prefix: Tensor) -> Tensor:
        """`[rows, hidden]` float32 unit keys from the tokens where `prefix` `[rows, tokens]` is True."""
        last = key_layer in (None, self.layers)
        hidden = (output.last_hidden_state if last else output.hidden_states[key_layer]).float()
        if key_pool == "mean":
            shown = prefix.to(hidden.dtype)[..., None]
            return normalize((hidden * shown).sum(1) / shown.sum(1), dim=-1)
        place = torch.arange(prefix.shape[1], device=prefix.device)
        final = torch.where(prefix, place, -1).amax(-1)
        return normalize(hidden[torch.arange(len(final), device=final.device), final], dim=-1)

    # -- scoring

    def score(
        self,
        examples: Sequence[Example] | Prepared,
        injection: RowsInjection = None,
        *,
        batch_size: int = 32,
        progress: Progress = SILENT,
    ) -> Scores:
        """Negative log-likelihood of the answers, end-of-turn token included.

        Differentiable with respect to the tensors in `injection` where gradients are enabled.

        Args:
            examples: with an answer each; or `prepare(examples, True, embed=True)`, which makes repeated calls fast.
            injection: memory for all the rows in order, or a function from row indices to it.
        """
        prepared = examples if isinstance(examples, Prepared) else self.prepare(examples, True, batch_size=batch_size)
        if prepared.max_answer == 0:
            raise ValueError("these examples were prepared without their answers; use prepare(examples, True)")
        nlls, masks, order = [], [], []
        progress.start("scoring answers", prepared.count)
        for batch in prepared.batches:
            with attached(self, _for_rows(injection, batch.rows)):
                nll, mask = self._score_batch(batch, prepared.max_answer)
            nlls.append(nll)
            masks.append(mask)
            order.append(batch.rows)
            progress.advance(len(batch.rows))
        progress.stop()
        inverse = torch.cat(order).argsort().to(self.device)
        token_nll, token_mask = torch.cat(nlls)[inverse], torch.cat(masks)[inverse]
        return Scores(token_nll.sum(-1) / token_mask.sum(-1), token_nll, token_mask)

    def _score_batch(self, batch: Batch, max_answer: int) -> tuple[Tensor, Tensor]:
        longest = int(batch.answer_lengths.max())
        output = self._decode(batch, use_cache=False)
        hidden = output.last_hidden_state[:, -longest - 1 : -1]
        logits = self.model.get_output_embeddings()(hidden)
        wide = logits.to(torch.promote_types(logits.dtype, torch.float32))
        targets = batch.inputs["input_ids"][:, -longest:]
        nll = wide.logsumexp(-1) - wide.gather(-1, targets[..., None])[..., 0]
        mask = batch.answer_mask[:, -longest:]
        missing = (max_answer - longest, 0)
        return nn.functional.pad(nll * mask, missing), nn.functional.pad(mask, missing)

    # -- generating

    @torch.no_grad()
    def generate(
        self,
        examples: Sequence[Example] | Prepared,
        injection: RowsInjection = None,
        max_new_tokens: int = 32,
        *,
        batch_size: int = 32,
        progress: Progress = SILENT,
        on_batch: Callable[[Tensor, Attachment], None] | None = None,
        **generate_options: Any,
    ) -> list[str]:
        """Answers to questions, greedy unless `generate_options` (of `model.generate`) say otherwise; stripped text.

        `on_batch` is called after each batch that read a memory, with its rows `[batch]` and the attachment, whose
        attention mass is then recorded.

        Raises:
            ValueError: `num_return_sequences` above 1 (one answer is given for each question).
        """
        if generate_options.get("num_return_sequences", 1) != 1:
            raise ValueError("generate gives one answer for each question; num_return_sequences must be 1")
        prepared = examples if isinstance(examples, Prepared) else self.prepare(examples, False, batch_size=batch_size)
        options = {"do_sample": False, "pad_token_id": self._pad_token(), **generate_options}
        answers = [""] * prepared.count
        progress.start("answering", prepared.count)
        for batch in prepared.batches:
            chosen = _for_rows(injection, batch.rows)
            with self._state_kept(), attached(self, chosen, record_mass=on_batch is not None) as attachment:
                tokens = self.model.generate(**batch.inputs, max_new_tokens=max_new_tokens, **options)
            if on_batch is not None and chosen is not None:
                on_batch(batch.rows, attachment)
            new = tokens[:, batch.inputs["input_ids"].shape[1] :]
            texts = self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
            for row, text in zip(batch.rows.tolist(), texts, strict=True):
                answers[row] = text.strip()
            progress.advance(len(batch.rows))
        progress.stop()
        return answers

    # -- identity

    def fingerprint(self, *, key_layer: int | None = None, key_pool: KeyPool = "last") -> dict[str, Any]:
        """What a memory must agree with, as JSON values: architecture, sizes, rope, embedding hash, key encoder.

        The hash covers the input embeddings rounded to bfloat16 (at most 4,096 evenly spaced rows), so that it does
        not depend on the dtype a bfloat16 or float32 checkpoint is loaded in.
        """
        rope = dict(getattr(self.text_model.config, "rope_parameters", None) or {})
        return {
            "architecture": type(self.model).__name__,
            "model_type": self.model.config.model_type,
            "layers": self.layers,
            "kv_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "hidden_size": self.hidden_size,
            "rope": {k: list(v) if isinstance(v, tuple) else v for k, v in sorted(rope.items()) if v is not None},
            "embedding_sha256": self._embedding_hash(),
            "key_layer": self.layers if key_layer is None else key_layer,
            "key_pool": key_pool,
        }

    @torch.no_grad()
    def _embedding_hash(self) -> str:
        if self._weight_hash is None:
            weight = self.model.get_input_embeddings().weight
            rows = weight[:: max(1, weight.shape[0] // 4096)].to("cpu", torch.bfloat16).contiguous()
            digest = hashlib.sha256(f"{tuple(weight.shape)}".encode())
            digest.update(rows.view(torch.int16).numpy().tobytes())
            self._weight_hash = digest.hexdigest()
        return self._weight_hash


_NOT_KEPT = ("past_key_values", "use_cache", "cache_position", "return_dict")


class _AtTheDoor(Exception):
    """Carries the text decoder's arguments out of a forward pass that need not go on."""

    def __init__(self, arguments: dict[str, Any]) -> None:
        self.arguments = arguments


def _stop_at_the_door(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    raise _AtTheDoor({**({"input_ids": args[0]} if args else {}), **kwargs})


def _for_rows(injection: RowsInjection, rows: Tensor) -> Injection | None:
    if injection is None:
        return None
    return injection.rows(rows.to(injection.mask.device)) if isinstance(injection, Injection) else injection(rows)
