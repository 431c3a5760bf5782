"""Tiny random models with processors, built in code: no download, no torchvision, float64 for exact comparisons."""

from inspect import signature
from typing import Any

import numpy as np
import torch
from PIL import Image
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers
from torch import Tensor
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    Idefics3Config,
    Idefics3ForConditionalGeneration,
    Idefics3ImageProcessor,
    Idefics3Processor,
    LlamaConfig,
    LlamaForCausalLM,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaModel,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLImageProcessor,
)

from inducekv.backbone import Backbone
from inducekv.examples import Example

PICTURES_FOLLOW_ROWS = "mm_encoder_outputs" in signature(LlavaModel.forward).parameters
"""Older releases mix up pictures: LLaVA with several of them under beams, Idefics3 without a cache."""

PAD, BOS, END, IMAGE, USER, ASSISTANT, VISION, VISION_END, UNKNOWN = range(9)
SPECIAL = ["<pad>", "<s>", "<end>", "<image>", "<user>", "<assistant>", "<vision>", "</vision>", "<unk>"]
SPECIAL += ["<fake_token_around_image>", "<global-img>", "<end_of_utterance>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{% for c in m.content %}"
    "{% if c.type == 'image' %}PICTURE{% else %}{{ c.text }}{% endif %}{% endfor %}<end>\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
SIZES = {
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 1024,
    "bos_token_id": BOS,
    "eos_token_id": END,
    "pad_token_id": PAD,
}


def tokenizer(picture: str = "<image>") -> PreTrainedTokenizerFast:
    """One token a character, plus the special tokens."""
    characters = ["\n", *map(chr, range(32, 127))]
    vocabulary = {token: i for i, token in enumerate([*SPECIAL, *characters])}
    spelled = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    spelled.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    spelled.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(
        tokenizer_object=spelled,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="<end>",
        unk_token="<unk>",
        additional_special_tokens=[*SPECIAL[3:8], *SPECIAL[9:]],
        chat_template=TEMPLATE.replace("PICTURE", picture),
    )


def lively(model: Any, dtype: torch.dtype) -> Any:
    """Weights large enough that outputs depend on the context; reproducible."""
    generator = torch.Generator().manual_seed(7)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
            parameter.data = (noise * 1.1 * parameter.shape[-1] ** -0.5).to(parameter.dtype)
    model.generation_config.do_sample = False
    model.generation_config.pad_token_id = PAD
    return model.eval().to(dtype)


def llava(dtype: torch.dtype = torch.float64, attention: str = "sdpa") -> Backbone:
    vision = CLIPVisionConfig(
        hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=2, image_size=28, patch_size=14
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=LlamaConfig(**SIZES),
        image_token_id=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=4,
    )
    torch.manual_seed(0)
    model = LlavaForConditionalGeneration(config)
    model.set_attn_implementation(attention)
    size = {"height": 28, "width": 28}
    images = CLIPImageProcessor(size=size, crop_size=size, do_center_crop=False)
    words = tokenizer()
    processor = LlavaProcessor(
        images,
        words,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=words.chat_template,
        num_additional_image_tokens=1,
    )
    return Backbone(lively(model, dtype), processor)


def idefics3(dtype: torch.dtype = torch.float64, attention: str = "sdpa") -> Backbone:
    config = Idefics3Config(
        text_config={**SIZES, "model_type": "llama", "head_dim": 24},
        vision_config={
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "image_size": 32,
            "patch_size": 8,
        },
        scale_factor=2,
        image_token_id=IMAGE,
        pad_token_id=PAD,
    )
    torch.manual_seed(0)
    model = Idefics3ForConditionalGeneration(config)
    model.set_attn_implementation(attention)
    edge = {"longest_edge": 32}
    words = tokenizer()
    images = Idefics3ImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False)
    processor = Idefics3Processor(images, words, image_seq_len=4, chat_template=words.chat_template)
    return Backbone(lively(model, dtype), processor)


class QwenStandIn:
    """What `Backbone` asks of a processor, for Qwen2.5-VL, whose own one cannot be built without torchvision."""

    def __init__(self) -> None:
        self.tokenizer = tokenizer("<vision><image></vision>")
        self.image_processor = Qwen2VLImageProcessor(
            patch_size=14, merge_size=2, min_pixels=28 * 28, max_pixels=84 * 84
        )

    def apply_chat_template(self, messages: list[dict[str, Any]], **options: Any) -> str:
        return self.tokenizer.apply_chat_template(messages, tokenize=False, **options)

    def __call__(self, text: list[str], images: list[Image.Image] | None, **options: Any) -> dict[str, Tensor]:
        seen = {} if images is None else dict(self.image_processor(images=images, return_tensors="pt"))
        for grid in seen.get("image_grid_thw", ()):
            text = [text[0].replace("<image>", "<one>" * int(grid.prod() // 4), 1)]
        inputs = dict(self.tokenizer([text[0].replace("<one>", "<image>")], **options))
        inputs.pop("token_type_ids", None)
        if "mm_token_type_ids" in signature(Qwen2_5_VLForConditionalGeneration.forward).parameters:
            inputs["mm_token_type_ids"] = (inputs["input_ids"] == IMAGE).int()
        return {**inputs, **seen}


def qwen2_5_vl(dtype: torch.dtype = torch.float64, attention: str = "sdpa") -> Backbone:
    config = Qwen2_5_VLConfig(
        text_config={
            **SIZES,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3]},
        },
        vision_config={
            "depth": 2,
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_heads": 2,
            "out_hidden_size": 64,
            "patch_size": 14,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
            "window_size": 56,
            "fullatt_block_indexes": [1],
        },
        image_token_id=IMAGE,
        video_token_id=UNKNOWN,
        vision_start_token_id=VISION,
        vision_end_token_id=VISION_END,
    )
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.set_attn_implementation(attention)
    return Backbone(lively(model, dtype), QwenStandIn())


class TextOnly(QwenStandIn):
    """A tokenizer that answers as a processor."""

    def __init__(self) -> None:
        self.tokenizer = tokenizer()

    def __call__(self, text: list[str], images: list[Image.Image] | None, **options: Any) -> dict[str, Tensor]:
        return dict(self.tokenizer(text, return_token_type_ids=False, **options))


def llama(dtype: torch.dtype = torch.float64) -> Backbone:
    torch.manual_seed(0)
    return Backbone(lively(LlamaForCausalLM(LlamaConfig(**SIZES)), dtype), TextOnly())


def picture(seed: int, width: int = 56, height: int = 28) -> Image.Image:
    """Coloured noise."""
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def example(seed: int, *, images: int = 1, answer: bool = True) -> Example:
    """A question of varying length about `images` pictures."""
    question = "what is this thing?"[: 6 + seed * 5 % 13]
    pictures = tuple(picture(100 * seed + i, 56 + 28 * (seed % 2)) for i in range(images))
    return Example(question, "zorb blick"[: 4 + seed % 5] if answer else None, pictures, id=f"example-{seed}")
