"""The tokenizer and processor: a small byte-level BPE, so that every text can be spelled, and Idefics3's own
processor."""

from __future__ import annotations

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import Idefics3Processor, PreTrainedTokenizerFast
from transformers.models.idefics3 import Idefics3ImageProcessor

from embedded_training.architecture import IMAGE_TOKENS
from inducekv.embedded.drawings import SIZE
from inducekv.embedded.questions import all_base_texts
from inducekv.embedded.words import made_up_name, odd_name

SPECIAL = [
    "<pad>",
    "<|end|>",
    "<|user|>",
    "<|assistant|>",
    "<image>",
    "<fake_token_around_image>",
    "<global-img>",
    "<end_of_utterance>",
]
SIZE_OF_VOCABULARY = 1024

# A turn is complete in itself and turns are joined as they are: a memory entry is a turn, so entries and prompts look
# alike.
CHAT_TEMPLATE = """\
{%- for message in messages -%}
{{- '<|user|>' if message['role'] != 'assistant' else '<|assistant|>' -}}
{%- if message['content'] is string -%}{{- message['content'] -}}
{%- else -%}{%- for part in message['content'] -%}
{{- '<image>' if part['type'] == 'image' else part['text'] -}}
{%- endfor -%}{%- endif -%}
{{- '<|end|>' if message['role'] == 'assistant' -}}
{%- endfor -%}
{{- '<|assistant|>' if add_generation_prompt -}}"""


def build_tokenizer(seed: int) -> PreTrainedTokenizerFast:
    """Train the BPE: the base skills' words become one token each, made-up names two to four."""
    generator = np.random.default_rng([seed, 20])
    names = [made_up_name(generator, int(generator.integers(1, 4))) for _ in range(20_000)]
    names += [odd_name(generator) for _ in range(4_000)]
    texts = all_base_texts() * 400 + [f"{a} {b}" for a, b in zip(names[::2], names[1::2], strict=True)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=SIZE_OF_VOCABULARY,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="<|end|>",
        additional_special_tokens=SPECIAL[2:],
        padding_side="left",
        clean_up_tokenization_spaces=False,
        model_max_length=4096,
    )


def build_processor(tokenizer: PreTrainedTokenizerFast) -> Idefics3Processor:
    """Every picture is squared to 32 x 32 pixels and becomes four image tokens between two markers."""
    edge = {"longest_edge": SIZE}
    image_processor = Idefics3ImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False)
    return Idefics3Processor(image_processor, tokenizer, image_seq_len=IMAGE_TOKENS, chat_template=CHAT_TEMPLATE)
