"""From examples to padded model inputs, through the processor's own chat template."""

import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from jaxtyping import Bool, Int
from PIL import Image
from torch import Tensor

from inducekv.chat import Chat, chat_of, shortened
from inducekv.examples import Example

ROW_BY_ROW = frozenset({"inputs_embeds", "input_ids", "attention_mask", "token_type_ids"})
"""Inputs of a text decoder whose first dimension is the batch's; of others that cannot be said for all families."""


@dataclass(frozen=True)
class Rendered:
    """One example as model inputs.

    Attributes:
        inputs: the processor's tensors, `input_ids` `[1, tokens]` among them, unpadded.
        answer_length: tokens of the answer, at the end of the sequence, end-of-turn token included; 0 without answer.
    """

    inputs: dict[str, Tensor]
    answer_length: int

    @property
    def tokens(self) -> int:
        return self.inputs["input_ids"].shape[1]

    @property
    def nbytes(self) -> int:
        return sum(x.nbytes for x in self.inputs.values())


@dataclass(frozen=True)
class Batch:
    """Some of the examples, padded on the left, so that prompts (or answers) end together.

    Attributes:
        rows: `[batch]` which examples these are, as indices into the list that was prepared.
        inputs: what `model(**inputs)` takes; `input_ids` and `attention_mask` `[batch, tokens]`.
        answer_lengths: `[batch]` answer tokens at the end of each row.
        text_inputs: what the text decoder alone takes, pictures already seen (`prepare(embed=True)`), or None.
    """

    rows: Int[Tensor, "batch"]
    inputs: dict[str, Tensor]
    answer_lengths: Int[Tensor, "batch"]
    text_inputs: dict[str, Any] | None = None

    @property
    def answer_mask(self) -> Bool[Tensor, "batch tokens"]:
        """True at answer tokens."""
        tokens = self.inputs["input_ids"].shape[1]
        place = torch.arange(tokens, device=self.answer_lengths.device)
        return place[None] >= tokens - self.answer_lengths[:, None]

    def part(self, places: Int[Tensor, "part"]) -> "Batch | None":
        """The rows at some places, numbered from 0; None where the text decoder's inputs do not come row by row.

        Only for batches whose pictures were seen already (`text_inputs`).
        """
        if self.text_inputs is None:
            return None
        cut: dict[str, Any] = {}
        for name, value in self.text_inputs.items():
            if not isinstance(value, Tensor):
                if isinstance(value, dict | list | tuple):
                    return None
                cut[name] = value
            elif name == "position_ids":  # [rows, tokens], or [3, rows, tokens] for rotary positions in space and time
                cut[name] = value if value.shape[-2] == 1 else value.index_select(value.dim() - 2, places)
            elif name in ROW_BY_ROW and value.dim() < 4 and len(value) == len(self.rows):
                cut[name] = value[places]
            else:
                return None
        ids = {name: self.inputs[name][places] for name in ("input_ids", "attention_mask")}
        return Batch(torch.arange(len(places)), ids, self.answer_lengths[places], cut)


@dataclass(frozen=True)
class Prepared:
    """Examples rendered, sorted by length and padded once, to be run many times.

    Attributes:
        batches: in order of length; every example is in exactly one.
        count: number of examples.
        max_answer: longest answer in tokens.
    """

    batches: tuple[Batch, ...]
    count: int
    max_answer: int


def conversation(
    example: Example, with_answer: bool, shown: Sequence[Example] = (), system: str | None = None
) -> list[dict[str, Any]]:
    """The example as chat messages: pictures and question from the user, the answer from the assistant.

    Examples that are `shown` come before it as whole turns, and the `system` text before all.
    """
    earlier = [message for each in shown for message in conversation(each, True)]
    if system is not None:
        earlier.insert(0, {"role": "system", "content": [{"type": "text", "text": system}]})
    content: list[dict[str, Any]] = [{"type": "image"} for _ in example.images]
    content.append({"type": "text", "text": example.question})
    messages: list[dict[str, Any]] = [{"role": "user", "content": content}]
    if with_answer:
        messages.append({"role": "assistant", "content": [{"type": "text", "text": example.answer}]})
    return [*earlier, *messages]


def render(
    processor: Any,
    example: Example,
    with_answer: bool,
    end_tokens: frozenset[int],
    shown: Sequence[Example] = (),
    system: str | None = None,
) -> Rendered:
    """Render one example through the processor's chat template, after those that are `shown` (each with its answer).

    The answer is what follows the common beginning of the rendered question (up to where the answer begins, see `Chat`)
    and the whole rendered conversation, in tokens. White space that a template writes after the end-of-turn token is
    dropped, so that the sequence ends where generation would.

    Raises:
        ValueError: an answer is needed and missing or empty; question, answer or system text are not in what the
            template renders, or not in its tokens; or examples are shown to a model that has no chat.
    """
    if with_answer and not (example.answer or "").strip():
        raise ValueError(f"example {example.identifier!r} has no answer; every example to learn or score needs one")
    if suffixes(processor):
        if shown or system is not None:
            raise ValueError(
                "this model's processor has no chat turns for a system text or shown examples; ask without"
            )
        return _render_suffix(processor, example, with_answer)
    chat, tokenizer = chat_of(processor), processor.tokenizer
    images = [image for each in (*shown, example) for image in each.load_images()]
    prompt = chat.prompt(processor, conversation(example, False, shown, system))
    for what, text in (("question", example.question), ("system text", system or "")):
        if not _stands_in(text, prompt):
            raise _lost(example, what, text, prompt)
    if not with_answer:
        inputs = _process(processor, prompt, images)
        _check_tokens(tokenizer, example, inputs["input_ids"][0].tolist())
        return Rendered(inputs, 0)
    whole = chat.whole(processor, conversation(example, True, shown, system))
    asked, told = (_token_ids(tokenizer, text) for text in (prompt, whole))
    common = next((i for i, (a, b) in enumerate(zip(asked, told, strict=False)) if a != b), min(len(asked), len(told)))
    answer_length = len(told) - common
    surplus = _white_space_after_end(tokenizer, told[common:], end_tokens)
    if answer_length - surplus < 1:
        raise _lost(example, "answer", str(example.answer), whole)
    inputs = _process(processor, whole, images)
    ids = inputs["input_ids"][0].tolist()
    _check_tokens(tokenizer, example, ids[: len(ids) - answer_length], ids[len(ids) - answer_length :], chat)
    if surplus:
        length = inputs["input_ids"].shape[1]
        inputs = {k: v[:, :-surplus] if _one_row(v, length) else v for k, v in inputs.items()}
    return Rendered(inputs, answer_length - surplus)


def suffixes(processor: Any) -> bool:
    """Whether a processor takes questions and answers as prefixes and suffixes (PaliGemma), rather than as a chat."""
    return "suffix" in signature(processor.__call__).parameters or type(processor).__name__ == "PaliGemmaProcessor"


def _check_tokens(
    tokenizer: Any, example: Example, prompt: list[int], answer: list[int] | None = None, chat: Chat | None = None
) -> None:
    """The question must be read in the prompt's tokens, the answer (and what closes it) in the answer's."""
    if tokenizer.unk_token_id is not None and tokenizer.unk_token_id in (*prompt, *(answer or ())):
        return  # letters that the model has no tokens for cannot be read back
    said = tokenizer.decode(prompt)
    if not _stands_in(example.question, said):
        raise _lost(example, "question", example.question, said)
    if answer is not None and chat is not None:
        said = tokenizer.decode(answer)
        if _compared(said) != _compared(f"{example.answer}{chat.closing}"):
            raise _lost(example, "answer", str(example.answer), said)


def _stands_in(text: str, said: str) -> bool:
    return text in said or _compared(text) in _compared(said)


def _compared(text: str) -> str:
    """Text without what tokenizers change: white space, and compatible characters."""
    return "".join(unicodedata.normalize("NFKC", text).split())


def _lost(example: Example, what: str, text: str, said: str) -> ValueError:
    text = text if len(text) <= 60 else f"{text[:60]}..."
    return ValueError(
        f"example {example.identifier[:60]!r}: the {what} {text!r} is not what the model would read there, which is "
        f"{shortened(said)}; the chat template or the tokenizer changes it"
    )


def _render_suffix(processor: Any, example: Example, with_answer: bool) -> Rendered:
    """PaliGemma's way: no chat, the question is the prefix and the answer the suffix, which its processor ends."""
    text = processor.image_token * len(example.images) + example.question
    images = [example.load_images()] if example.images else None
    suffix = {"suffix": [example.answer]} if with_answer else {}
    inputs = dict(processor(text=[text], images=images, return_tensors="pt", **suffix))
    inputs.pop("labels", None)  # nothing here is trained
    return Rendered(inputs, int(inputs["token_type_ids"].sum()) if with_answer else 0)


def pad(
    rendered: Sequence[Rendered], pad_token: int, device: torch.device, dtype: torch.dtype, images_per_row: bool = False
) -> dict[str, Tensor]:
    """One batch from several examples: token tensors padded on the left, the rest (pixels, grids) concatenated.

    With `images_per_row`, tensors of pictures are `[1, images, ...]`, and a row without any gets empty ones.
    """
    longest = max(r.tokens for r in rendered)
    batch: dict[str, list[Tensor]] = {}
    for name in dict.fromkeys(name for r in rendered for name in r.inputs):
        present = {i: r.inputs[name] for i, r in enumerate(rendered) if name in r.inputs}
        if all(_one_row(tensor, rendered[i].tokens) for i, tensor in present.items()):
            value = pad_token if name == "input_ids" else 0
            batch[name] = [_padded(x, longest - x.shape[1], value) for x in present.values()]
        elif images_per_row:
            empty = next(iter(present.values()))[:, :0]
            batch[name] = [present.get(i, empty) for i in range(len(rendered))]
        else:
            batch[name] = list(present.values())
    joined = {name: joined_rows(tensors) for name, tensors in batch.items()}
    return {name: x.to(device, dtype if x.is_floating_point() else None) for name, x in joined.items()}


def joined_rows(tensors: Sequence[Tensor], axis: int = 0) -> Tensor:
    """Concatenate tensors, filled up with zeros at the end of every other axis: fewer pictures or tiles, smaller ones.

    The models cut the filling off again (by `image_sizes`, or because a picture of zeros is none).
    """
    sizes = [max(x.shape[i] for x in tensors) for i in range(tensors[0].dim())]

    def missing(x: Tensor) -> list[int]:
        return [n for i in reversed(range(x.dim())) for n in (0, 0 if i == axis else sizes[i] - x.shape[i])]

    return torch.cat([torch.nn.functional.pad(x, missing(x)) for x in tensors], axis)


def _padded(tensor: Tensor, missing: int, value: int) -> Tensor:
    return torch.nn.functional.pad(tensor, (missing, 0), value=value)


def _one_row(tensor: Tensor, tokens: int) -> bool:
    return tensor.dim() == 2 and tensor.shape == (1, tokens)


def _process(processor: Any, text: str, images: Sequence[Image.Image]) -> dict[str, Tensor]:
    options = {} if not _begins_itself(processor.tokenizer, text) else {"add_special_tokens": False}
    inputs = dict(processor(text=[text], images=list(images) or None, return_tensors="pt", **options))
    inputs.setdefault("attention_mask", torch.ones_like(inputs["input_ids"]))
    return {name: tensor for name, tensor in inputs.items() if isinstance(tensor, Tensor)}


def _token_ids(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=not _begins_itself(tokenizer, text))["input_ids"])


def _begins_itself(tokenizer: Any, text: str) -> bool:
    """Whether the template already wrote the beginning-of-text token that the tokenizer would add."""
    return tokenizer.bos_token is not None and text.startswith(tokenizer.bos_token)


def _white_space_after_end(tokenizer: Any, answer: list[int], end_tokens: frozenset[int]) -> int:
    last = next((i for i in reversed(range(len(answer))) if answer[i] in end_tokens), None)
    if last is None or tokenizer.decode(answer[last + 1 :]).strip():
        return 0
    return len(answer) - 1 - last
