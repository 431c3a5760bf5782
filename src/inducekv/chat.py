"""How a model's chat template is to be used. Nothing is assumed of a template: it is tried with a probe, once."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from weakref import WeakKeyDictionary

Messages = Sequence[Mapping[str, Any]]

QUESTION_ANSWER = "question_answer"
"""Name of the plain form, as a memory's fingerprint has it."""
NEXT_QUESTION = "\n\nQuestion:"
"""Where an answer in the plain form ends: a base model goes on with the next question."""
SHOWN_CHARACTERS = 200
"""Of rendered text in an error message."""

LARGEST_SYSTEM = 8 * 2**10
"""Bytes of a system text, which memories keep outside their budget."""

_ASKED, _TOLD = (
    "'Is \"it\"\nquux?'",
    "'The \"answer\"\nxyzzy.'",
)  # verbatim nowhere but in text: repr and JSON escape them
_DATE = datetime(2024, 7, 26)  # CHOICE: the day that Llama 3's template falls back to; a prompt must not age
_CLOCK = "{%- macro strftime_now(format) -%}{{ format"
_CLOCK += "".join(f" | replace('%{code}', '{_DATE.strftime('%' + code)}')" for code in "aAbBdHIjmMpSyY")
_CLOCK += " }}{%- endmacro -%}"


@dataclass(frozen=True)
class Chat:
    """The way to write conversations for one template.

    Attributes:
        plain: there is no template: turns are written as `Question: ...` and `Answer: ...`.
        parts: a message's content goes in as a list of parts, rather than as text.
        cut: what the generation prompt ends with that no answer stands behind, such as a thought that it opens.
        opening: what a turn begins with that the generation prompt lacks, such as an empty thought.
        closing: what follows an answer.
        options: for the template: no thinking, a fixed date.
    """

    plain: bool = False
    parts: bool = True
    cut: str = ""
    opening: str = ""
    closing: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)

    def prompt(self, processor: Any, messages: Messages) -> str:
        """A conversation that ends with a question, up to where the answer begins.

        Raises:
            ValueError: the template refuses it, or ends it otherwise than it ended the probe.
        """
        if self.plain:
            return _plain(messages) + "Answer:"
        text = self._applied(processor, messages, True)
        if not text.endswith(self.cut):
            raise ValueError(f"the chat template ends this prompt without its usual {self.cut!r}: {shortened(text)}")
        return text.removesuffix(self.cut) + self.opening

    def whole(self, processor: Any, messages: Messages) -> str:
        """A conversation that ends with an answer.

        Raises:
            ValueError: the template refuses it.
        """
        return _plain(messages) if self.plain else self._applied(processor, messages, False)

    def _applied(self, processor: Any, messages: Messages, ask: bool) -> str:
        try:
            given = list(messages) if self.parts else [_as_text(message) for message in messages]
            return str(processor.apply_chat_template(given, add_generation_prompt=ask, **self.options))
        except Exception as error:  # whatever a template, or the processor around it, raises
            roles = ", ".join(str(message["role"]) for message in messages)
            reason = shortened(str(error) or type(error).__name__)
            raise ValueError(f"the model's chat template does not take these turns ({roles}): {reason}") from error


_found: "WeakKeyDictionary[Any, tuple[Any, Chat]]" = WeakKeyDictionary()


def chat_of(processor: Any) -> Chat:
    """The way to write conversations for a processor's chat template; tried anew when the template is changed.

    Raises:
        ValueError: the template loses questions or answers, as text and as parts; the message shows what it wrote.
    """
    template = getattr(processor, "chat_template", None) or getattr(processor.tokenizer, "chat_template", None)
    known = _found.get(processor)
    if known is None or known[0] != template:
        known = _found[processor] = (template, _tried(processor, template))
    return known[1]


def _tried(processor: Any, template: Any) -> Chat:
    options, written = _options(template), []
    for parts in (True, False):
        chat = Chat(parts=parts, options=options)
        asked = {"role": "user", "content": [{"type": "text", "text": _ASKED}]}
        told = {"role": "assistant", "content": [{"type": "text", "text": _TOLD}]}
        try:
            prompt, whole = chat.prompt(processor, [asked]), chat.whole(processor, [asked, told])
        except ValueError as error:
            written.append(str(error))
            continue
        if _ASKED not in prompt or _TOLD not in whole:
            written.append(f"it wrote {shortened(whole)}")
            continue
        before, _, closing = whole.rpartition(_TOLD)
        common = next((i for i, (a, b) in enumerate(zip(prompt, before, strict=False)) if a != b), len(before))
        common = min(common, len(prompt))
        cut, opening = prompt[common:], before[common:]
        if not (cut.strip() or opening.strip()):  # only white space differs: the template's own prompt is right
            cut = opening = ""
        return Chat(False, parts, cut, opening, closing, options)
    if template is None:
        return Chat(plain=True, closing="\n\n")
    raise ValueError(
        f"the model's chat template loses the question or the answer: as parts, {'; as text, '.join(written)}"
    )


def _options(template: Any) -> dict[str, Any]:
    options: dict[str, Any] = {}
    if "enable_thinking" in str(template):
        options["enable_thinking"] = False
    if isinstance(template, str) and "strftime_now" in template:  # the same examples make the same memory on any day
        options["chat_template"] = _CLOCK + template
    return options


def _as_text(message: Mapping[str, Any]) -> dict[str, Any]:
    kinds = {part["type"] for part in message["content"]} - {"text"}
    if kinds:
        raise ValueError(f"it takes text alone, and the example has pictures ({', '.join(sorted(kinds))})")
    return {**message, "content": "\n".join(part["text"] for part in message["content"])}


def _plain(messages: Messages) -> str:
    written = {"system": "{}\n\n", "user": "Question: {}\n", "assistant": "Answer: {}\n\n"}
    texts = [(str(message["role"]), _as_text(message)["content"]) for message in messages]
    for role, text in texts:
        if NEXT_QUESTION in text:
            raise ValueError(f"{role} text holds {NEXT_QUESTION!r}, where a model without chat template ends answers")
    return "".join(written[role].format(text) for role, text in texts)


def checked_system(system: str | None) -> str | None:
    """
    Raises:
        ValueError: an empty system text, or one of more than 8 KiB.
        TypeError: no text.
    """
    if system is None:
        return None
    if not isinstance(system, str):
        raise TypeError(f"system must be a text or None; got {type(system).__name__}")
    if not system.strip():
        raise ValueError("system is empty; give a text, or None for what the chat template writes by itself")
    if (size := len(system.encode())) > LARGEST_SYSTEM:
        raise ValueError(f"system has {size:,} bytes; at most {LARGEST_SYSTEM:,} are kept with a memory: shorten it")
    return system


def shortened(text: str) -> str:
    """For an error message: the end of the text, where the last turn stands."""
    return repr(text if len(text) <= SHOWN_CHARACTERS else "..." + text[-SHOWN_CHARACTERS:])
