"""A frozen Hugging Face vision-language model with its processor: encode, score answers, generate."""

from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float32
from torch import Tensor, nn

from inducekv.attention import Attachment, InFlight, Provider, attached
from inducekv.byte_cache import ByteCache
from inducekv.calls import OwnHooks, is_open, lock_of, opened, unfollowed
from inducekv.chat import NEXT_QUESTION, chat_of, checked_system
from inducekv.config import DEFAULT_KEY_POOL, InduceKVConfig, KeyPool
from inducekv.decoder import state_kept, state_of, text_inputs
from inducekv.devices import device_of
from inducekv.encoded import Encoded
from inducekv.encoding import encode_batch
from inducekv.examples import Example, named_errors
from inducekv.families import family_of
from inducekv.fingerprint import embedding_hash, fingerprint_of
from inducekv.injection import Injection
from inducekv.lengths import check_texts, check_tokens, context_of
from inducekv.loading import loaded
from inducekv.own_config import changed
from inducekv.preamble import common_beginning
from inducekv.preparing import batched
from inducekv.progress import SILENT, Progress
from inducekv.published import published_fields
from inducekv.rendering import Batch, Prepared, Rendered, render, suffixes
from inducekv.retrieval_key import key_dim, retrieval_key
from inducekv.scoring import Scores, answer_nll
from inducekv.text_processor import as_processor

if TYPE_CHECKING:
    from inducekv.compression import LiveCompression

PROBES = ("What is this?", "43 apples")
"""Two questions without a token in common, to find what a template writes before them."""
RowsInjection = Injection | Callable[[Tensor], Injection | Provider | InFlight | None] | None
"""Memory for a whole list of examples, or a function that gives it for some of the rows (indices `[batch]`)."""


class Backbone:
    """A model that never changes: its parameters are read, never written, and nothing is left on it.

    Attributes:
        model, processor: the Hugging Face objects. A processor needs `apply_chat_template`, `__call__(text=, images=,
            return_tensors=)` and `tokenizer`; a bare tokenizer is taken too.
        family: the row of `families.FAMILIES`.
        layers, kv_heads, head_dim, hidden_size: sizes of the text decoder.
        image_token: id that stands for a picture's tokens; None for a text-only model.
        own_config: fields of `InduceKVConfig` that the model names for itself; see `own_config.own_fields`.
        system: text that every prompt begins with, instead of the chat template's own; memories record it.
        rendered: examples rendered last, kept under a limit of bytes (0: none) for who reads the same ones again and
            again; their pictures must then not be drawn on.

    Raises:
        ValueError: the model's family is not supported.
    """

    def __init__(
        self,
        model: nn.Module,
        processor: Any,
        own_config: Mapping[str, Any] | None = None,
        *,
        system: str | None = None,
    ) -> None:
        self.family = family_of(model)
        self.model: Any = model.eval()
        self.processor = as_processor(processor)
        self.system = checked_system(system)
        self.own_config: dict[str, Any] = dict(own_config or {})
        self.text_model: Any = self.family.text(model)
        config = self.text_model.config
        self.layers = len(self.text_model.layers)
        self.kv_heads = int(getattr(config, "num_key_value_heads", None) or config.num_attention_heads)
        self.hidden_size = int(config.hidden_size)
        self.head_dim = int(getattr(config, "head_dim", None) or self.hidden_size // config.num_attention_heads)
        image = self.family.image_token
        self.image_token: int | None = None if image is None else int(getattr(model.config, image))
        self.rendered = ByteCache[Rendered](0, attrgetter("nbytes"))
        self._embedding_hash: str | None = None

    @classmethod
    def from_pretrained(cls, name_or_path: str | Path, *, system: str | None = None, **options: Any) -> "Backbone":
        """Load a model and its processor; `options` go to the model's `from_pretrained`.

        Args:
            name_or_path: a folder, a GGUF file, the name of a model that `inducekv models get` fetched, or one on the
                Hub.
            system: text that every prompt begins with.

        Code that comes with a model is never run: what it does to attention cannot be known.

        Raises:
            ValueError: the family is not supported, `trust_remote_code` is among the options, or the model's
                `inducekv_config.json` is not usable.
            OSError: no such model.
        """
        return cls(*loaded(name_or_path, options), system=system)

    @property
    def device(self) -> torch.device:
        """Where inputs go and memories are put together; layers may be elsewhere."""
        return device_of(self.model)

    @property
    def dtype(self) -> torch.dtype:
        return self.model.dtype

    def config(self, changes: Mapping[str, Any] | None = None) -> InduceKVConfig:
        """The configuration that the model names for itself, the defaults for the rest, with some fields changed.

        A model that names nothing is read as published models are (`published.published_fields`).

        Raises:
            ValueError, TypeError: as `InduceKVConfig`.
        """
        own = self.own_config or published_fields(self.layers, self.image_token is not None)
        return changed(own, changes or {})

    # -- preparing

    def prepare(
        self,
        examples: Sequence[Example],
        with_answer: bool,
        *,
        embed: bool = False,
        shown: Sequence[Sequence[Example]] | None = None,
        batch_size: int = 32,
        progress: Progress = SILENT,
    ) -> Prepared:
        """Render, sort by length and pad, once for many runs.

        Args:
            examples: at least one; with an answer each if `with_answer`.
            with_answer: include the answers (to score or encode), or end with the generation prompt (to answer).
            embed: also run everything before the text decoder (vision tower, embeddings), so that repeated scoring
                only runs the decoder.
            shown: for each of `examples`, others with answers that come before it as chat turns.
            batch_size: rows in a batch.

        Raises:
            ValueError: no examples, a missing answer, an unreadable picture, one that the processor refuses, an example
                longer than the model's context, `embed` for a model whose decoder reads its input some other way; what
                is wrong with an example begins with the example's `label`.
        """
        if not examples:
            raise ValueError("no examples given; at least one is needed")
        if batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, got {batch_size}")
        rendered = []
        progress.start("reading examples", len(examples))
        context = context_of(self.text_model)
        check_texts(examples, self.processor.tokenizer, context, self.image_token)
        for example, before in zip(examples, shown or [()] * len(examples), strict=True):
            with named_errors(example):
                made = self._render(example, with_answer, before)
            check_tokens(example, made.tokens, context)
            rendered.append(made)
            progress.advance()
        progress.stop()
        return batched(self, rendered, batch_size, embed)

    def _render(self, example: Example, with_answer: bool, shown: Sequence[Example] = ()) -> Rendered:
        def make() -> Rendered:
            with lock_of(self.processor):  # tokenizers refuse to be used by two threads at once
                return render(self.processor, example, with_answer, self.end_tokens, shown, self.system)

        return make() if shown else self.rendered.get((example, int(with_answer)), make)

    def _prepared(self, examples: Sequence[Example] | Prepared, with_answer: bool, batch_size: int) -> Prepared:
        prepared = (
            examples if isinstance(examples, Prepared) else self.prepare(examples, with_answer, batch_size=batch_size)
        )
        if with_answer != (prepared.max_answer > 0):
            raise ValueError(f"these examples were prepared the other way; use prepare(examples, {with_answer})")
        return prepared

    @cached_property
    def special_tokens(self) -> Tensor:
        """Ids of the tokens that are no words: the tokenizer's special ones and the image's. `[n]` int64."""
        tokenizer = getattr(self.processor, "tokenizer", None)
        special = {int(i) for i in getattr(tokenizer, "all_special_ids", ())}
        return torch.tensor(sorted(special | ({self.image_token} - {None})), dtype=torch.long)

    @property
    def pad_token(self) -> int:
        """Id that rows are filled up with."""
        pad_token = self.processor.tokenizer.pad_token_id
        return int(pad_token if pad_token is not None else min(self.end_tokens, default=0))

    @property
    def end_tokens(self) -> frozenset[int]:
        """Ids that end an answer."""
        ends = getattr(getattr(self.model, "generation_config", None), "eos_token_id", None)
        ends = ends if isinstance(ends, list | tuple) else [ends]
        return frozenset(int(e) for e in (*ends, self.processor.tokenizer.eos_token_id) if e is not None)

    @property
    def plain_prompt(self) -> bool:
        """Whether the model has no chat template, so that prompts are plain questions and answers (`chat.Chat`)."""
        processor = self.processor
        return processor is not None and not suffixes(processor) and chat_of(processor).plain

    def decoder_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        """What the whole model would hand to its text decoder; see `decoder.text_inputs`."""
        with state_kept(self.model, self.family):
            return text_inputs(self.model, self.family, inputs)

    def _decode(self, batch: Batch, **options: Any) -> Any:
        """One pass of the text decoder over a batch."""
        inputs = batch.text_inputs if batch.text_inputs is not None else self.decoder_inputs(batch.inputs)
        return self.text_model(**inputs, **options)

    # -- encoding

    @torch.no_grad()
    def encode(
        self,
        examples: Sequence[Example],
        *,
        key_layer: int | None = None,
        key_pool: KeyPool = DEFAULT_KEY_POOL,
        batch_size: int = 32,
        progress: Progress = SILENT,
        scorer: "LiveCompression | None" = None,
        shared_preamble: bool = False,
        behind: Sequence[Sequence[Example]] | None = None,
    ) -> list[Encoded]:
        """One frozen pass over question and answer of every example (InduceKV, specs section 1).

        Args:
            examples: each with an answer.
            key_layer: hidden state of the retrieval key, 0 (embeddings) to `layers`; -1: the last; None: the middle.
            key_pool: see `retrieval_key`.
            scorer: a compression that selects tokens; its scores go into `Encoded.scores`.
            shared_preamble: leave out the tokens that every prompt begins with (`preamble`).
            behind: for each example, others with answers that are read before it, as turns of the chat; only the
                example's own tokens are returned (its key then knows of the others too). None: each is read alone.

        Raises:
            ValueError: as `prepare`, for a `key_layer` out of range, and where the chat template renders an example
                otherwise behind others than alone.
        """
        prepared = self.prepare(examples, True, batch_size=batch_size, shown=behind)
        skipped = self._before_own(examples, prepared, behind, shared_preamble)
        encoded: list[Encoded | None] = [None] * prepared.count
        progress.start("encoding examples", prepared.count)
        for batch in prepared.batches:
            before_own = [skipped[row] for row in batch.rows.tolist()]
            with unfollowed():
                rows = encode_batch(self, batch, key_layer, key_pool, scorer, before_own)
            for row, made in zip(batch.rows.tolist(), rows, strict=True):
                encoded[row] = made
            progress.advance(len(batch.rows))
        progress.stop()
        return [e for e in encoded if e is not None]

    def _before_own(
        self,
        examples: Sequence[Example],
        prepared: Prepared,
        behind: Sequence[Sequence[Example]] | None,
        shared_preamble: bool,
    ) -> list[int]:
        """For each example, how many of its rendered tokens are not its own."""
        skipped = [0] * len(examples)
        if behind is None and not shared_preamble:
            return skipped
        rows = {}
        for batch in prepared.batches:
            real = batch.inputs["attention_mask"].bool()
            for place, row in enumerate(batch.rows.tolist()):
                rows[row] = batch.inputs["input_ids"][place][real[place]].tolist()
        for row, (example, ids) in enumerate(zip(examples, [rows[row] for row in range(len(examples))], strict=True)):
            alone = ids
            if behind is not None and behind[row]:
                alone = self._render(example, True).inputs["input_ids"][0].tolist()
            own = len(alone) - len(common_beginning(alone, self.preamble))
            if ids[len(ids) - own :] != alone[len(alone) - own :]:
                raise ValueError(
                    f"the chat template renders example {example.identifier!r} otherwise behind others than alone; "
                    "encode every example alone: neighbours=0"
                )
            keep = own if shared_preamble or (behind is not None and behind[row]) else len(ids)
            skipped[row] = len(ids) - keep
        return skipped

    @cached_property
    def closing(self) -> int:
        """How many tokens every rendered prompt ends with: what the template writes after the question."""
        if self.family.token_types == "prefix":
            return 0
        return len(common_beginning(*[ids[::-1] for ids in self._probes]))

    @cached_property
    def _probes(self) -> list[list[int]]:
        return [self._render(Example(probe, None), False).inputs["input_ids"][0].tolist() for probe in PROBES]

    @cached_property
    def preamble(self) -> tuple[int, ...]:
        """Token ids that every rendered prompt begins with: beginning of text, system text, header of the question.

        Found by rendering two questions that have nothing in common; it ends before the first picture.
        """
        if self.family.token_types == "prefix":  # the whole prompt sees itself in both directions: no part is as alone
            return ()
        shared = common_beginning(*self._probes)
        end = shared.index(self.image_token) if self.image_token in shared else len(shared)
        return tuple(shared[:end])

    def query_keys(
        self,
        examples: Sequence[Example] | Prepared,
        *,
        key_layer: int | None = None,
        key_pool: KeyPool = DEFAULT_KEY_POOL,
        batch_size: int = 32,
        progress: Progress = SILENT,
    ) -> Float32[Tensor, "n key_dim"]:
        """Retrieval keys of questions: the same function that gave the entries theirs. `[n, key_dim]`, unit norm.

        Questions that were prepared (without answers) are not rendered again; `generate` takes the same ones.
        """
        prepared = self._prepared(examples, False, batch_size)
        keys = torch.empty(prepared.count, key_dim(self.hidden_size, key_pool), device=self.device)
        progress.start("reading questions", prepared.count)
        for batch in prepared.batches:
            keys[batch.rows] = self.query_keys_from_inputs(key_layer=key_layer, key_pool=key_pool, **batch.inputs)
            progress.advance(len(batch.rows))
        progress.stop()
        return keys

    @torch.no_grad()
    def query_keys_from_inputs(
        self, *, key_layer: int | None = None, key_pool: KeyPool = DEFAULT_KEY_POOL, **inputs: Any
    ) -> Float32[Tensor, "rows key_dim"]:
        """Retrieval keys `[rows, key_dim]` of model inputs that end with a generation prompt, padded on either side."""
        inputs = {name: x for name, x in inputs.items() if x is not None}
        if "attention_mask" not in inputs:
            tokens = inputs["input_ids"] if "input_ids" in inputs else inputs["inputs_embeds"][..., 0]
            inputs["attention_mask"] = torch.ones_like(tokens, dtype=torch.long)
        hidden = state_of(self.text_model, key_layer, self.decoder_inputs(inputs))
        return retrieval_key(self, hidden, key_pool, inputs["attention_mask"].bool(), inputs.get("input_ids"))

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
        prepared = self._prepared(examples, True, batch_size)
        nlls, masks, order = [], [], []
        progress.start("scoring answers", prepared.count)
        for batch in prepared.batches:
            with attached(self, _for_rows(injection, batch.rows)):
                hidden = self._decode(batch, use_cache=False).last_hidden_state
            head = self.model.get_output_embeddings()
            nll, mask = answer_nll(hidden, head, batch, prepared.max_answer, self.softcap)
            nlls.append(nll.to(self.device))
            masks.append(mask.to(self.device))
            order.append(batch.rows)
            progress.advance(len(batch.rows))
        progress.stop()
        inverse = torch.cat(order).argsort().to(self.device)
        token_nll, token_mask = torch.cat(nlls)[inverse], torch.cat(masks)[inverse]
        return Scores(token_nll.sum(-1) / token_mask.sum(-1), token_nll, token_mask)

    @cached_property
    def softcap(self) -> float | None:
        """What the model squashes its logits to, if it does: some releases leave out what the configuration says."""
        cap: float | None = getattr(self.text_model.config, "final_logit_softcapping", None)
        if cap is None:
            return None
        said: list[Tensor] = []
        hooks = OwnHooks(lambda: is_open(said))
        hooks.after(self.model.get_output_embeddings(), lambda module, args, kwargs, out: said.append(out))
        try:
            with torch.no_grad(), state_kept(self.model, self.family), unfollowed(), opened(said):
                logits = self.model(input_ids=torch.zeros(1, 1, dtype=torch.long, device=self.device)).logits
        finally:
            hooks.remove()
        return None if torch.equal(said[0].to(logits), logits) else cap

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
        prepared = self._prepared(examples, False, batch_size)
        options = {"do_sample": False, "pad_token_id": self.pad_token, **generate_options}
        plain = self.plain_prompt
        if plain:  # a base model does not end its turn: it would go on with questions of its own
            options = {"stop_strings": [NEXT_QUESTION], "tokenizer": self.processor.tokenizer, **options}
        answers = [""] * prepared.count
        progress.start("answering", prepared.count)
        for batch in prepared.batches:
            chosen = _for_rows(injection, batch.rows)
            with (
                state_kept(self.model, self.family),
                attached(self, chosen, record_mass=on_batch is not None) as attachment,
            ):
                tokens = self.model.generate(**batch.inputs, max_new_tokens=max_new_tokens, **options)
            if on_batch is not None and chosen is not None:
                on_batch(batch.rows, attachment)
            new = tokens[:, batch.inputs["input_ids"].shape[1] :]
            texts = self.processor.tokenizer.batch_decode(new, skip_special_tokens=True)
            for row, text in zip(batch.rows.tolist(), texts, strict=True):
                answers[row] = (text.partition(NEXT_QUESTION)[0] if plain else text).strip()
            progress.advance(len(batch.rows))
        progress.stop()
        return answers

    # -- identity

    def fingerprint(self, *, key_layer: int | None = None, key_pool: KeyPool = DEFAULT_KEY_POOL) -> dict[str, Any]:
        """What a memory must agree with, as JSON values; see `fingerprint.fingerprint_of`."""
        return fingerprint_of(self, key_layer, key_pool)

    @property
    def embedding_hash(self) -> str:
        """SHA-256 of the input embeddings; see `fingerprint.embedding_hash`."""
        if self._embedding_hash is None:
            self._embedding_hash = embedding_hash(self.model.get_input_embeddings())
        return self._embedding_hash


def _for_rows(injection: RowsInjection, rows: Tensor) -> Injection | Provider | InFlight | None:
    if injection is None:
        return None
    return injection.rows(rows.to(injection.mask.device)) if isinstance(injection, Injection) else injection(rows)
