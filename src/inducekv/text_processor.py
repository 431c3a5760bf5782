"""A bare tokenizer with a processor's interface, so that text-only models need no way of their own."""

from collections.abc import Sequence
from typing import Any


class TextProcessor:
    """What `Backbone` asks of a processor, for models that take text alone.

    Attributes:
        tokenizer: the Hugging Face tokenizer, which is used as it is.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer

    def apply_chat_template(self, conversation: Any, tokenize: bool = False, **options: Any) -> Any:
        """The tokenizer's chat template; text rather than tokens by default, as of a processor."""
        return self.tokenizer.apply_chat_template(conversation, tokenize=tokenize, **options)

    def __call__(self, text: str | Sequence[str] | None = None, images: Any = None, **options: Any) -> Any:
        """Tokens of `text`.

        Raises:
            ValueError: pictures are given.
        """
        if images is not None and len(images):
            raise ValueError(f"this model reads text alone; got {len(images)} picture(s): take them out of the example")
        return self.tokenizer(text, **{"return_token_type_ids": False, **options})

    def decode(self, *args: Any, **options: Any) -> Any:
        """As the tokenizer's."""
        return self.tokenizer.decode(*args, **options)

    def batch_decode(self, *args: Any, **options: Any) -> Any:
        """As the tokenizer's."""
        return self.tokenizer.batch_decode(*args, **options)

    def save_pretrained(self, folder: Any, **options: Any) -> Any:
        """As the tokenizer's."""
        return self.tokenizer.save_pretrained(folder, **options)


def as_processor(given: Any) -> Any:
    """The processor itself, or a bare tokenizer in its interface. None stays: a model can be measured without."""
    return given if given is None or hasattr(given, "tokenizer") else TextProcessor(given)
