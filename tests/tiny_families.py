"""A tiny random model of every family, with its real processor where that can be built without torchvision.

A new family needs one function here, named like its row in `inducekv.families.FAMILIES` (or a variant of it).
"""

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
import transformers as hf
from PIL import Image
from torch import Tensor

import tiny
from inducekv.backbone import Backbone
from tiny import IMAGE, PAD, SIZES, UNKNOWN, VISION, VISION_END, QwenStandIn, TextOnly, lively, tokenizer

TEXT = {**SIZES, "num_hidden_layers": 2}
VISION_SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
SMALL = {"height": 28, "width": 28}
WINDOWED = {"head_dim": 16, "query_pre_attn_scalar": 16, "layer_types": ["sliding_attention", "full_attention"]}


class StandIn(QwenStandIn):
    """For processors that need torchvision or num2words: the real image processor, then tokens counted."""

    def __init__(self, images: Any, tokens: Callable[[dict[str, Tensor]], list[int]]) -> None:
        self.tokenizer, self.image_processor, self.tokens = tokenizer(), images, tokens

    def __call__(self, text: list[str], images: list[Image.Image] | None, **options: Any) -> dict[str, Tensor]:
        seen = {} if images is None else dict(self.image_processor(images=images, return_tensors="pt"))
        for count in self.tokens(seen) if seen else ():
            text = [text[0].replace("<image>", "<one>" * count, 1)]
        inputs = dict(self.tokenizer([text[0].replace("<one>", "<image>")], return_token_type_ids=False, **options))
        return {**inputs, **seen}


def built(config: Any, processor: Any) -> Backbone:
    """A model of the configuration with lively float64 weights."""
    torch.manual_seed(0)
    auto = hf.AutoModelForCausalLM if isinstance(processor, TextOnly) else hf.AutoModelForImageTextToText
    return Backbone(lively(auto.from_config(config), torch.float64), processor)


def llava_next() -> Backbone:
    grid = [[28, 28], [28, 56]]
    vision = hf.CLIPVisionConfig(image_size=28, patch_size=14, **VISION_SIZES)
    config = hf.LlavaNextConfig(
        vision_config=vision,
        text_config=hf.MistralConfig(**TEXT),
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        image_grid_pinpoints=grid,
    )
    images = hf.LlavaNextImageProcessor(size={"shortest_edge": 28}, crop_size=SMALL, image_grid_pinpoints=grid)
    words = tokenizer()
    processor = hf.LlavaNextProcessor(
        images,
        words,
        patch_size=14,
        vision_feature_select_strategy="default",
        chat_template=words.chat_template,
        num_additional_image_tokens=1,
    )
    return built(config, processor)


def llava_onevision() -> Backbone:
    grid = [[28, 28], [28, 56]]
    vision = hf.SiglipVisionConfig(image_size=28, patch_size=14, vision_use_head=False, **VISION_SIZES)
    config = hf.LlavaOnevisionConfig(
        vision_config=vision,
        text_config=hf.Qwen2Config(**TEXT),
        image_token_index=IMAGE,
        video_token_index=UNKNOWN,
        image_grid_pinpoints=grid,
    )
    images = hf.LlavaOnevisionImageProcessor(size=SMALL, image_grid_pinpoints=grid)

    def tokens(seen: dict[str, Tensor]) -> list[int]:
        features = backbone.model.model.get_image_features(seen["pixel_values"].double(), seen["image_sizes"])
        return [len(x) for x in features.pooler_output]

    backbone = built(config, StandIn(images, tokens))
    return backbone


def internvl() -> Backbone:
    vision = hf.InternVLVisionConfig(image_size=(56, 56), patch_size=(14, 14), **VISION_SIZES)
    config = hf.InternVLConfig(
        vision_config=vision, text_config=hf.Qwen2Config(**TEXT), image_token_id=IMAGE, image_seq_length=4
    )
    size = {"height": 56, "width": 56}
    images = hf.CLIPImageProcessor(size=size, crop_size=size)
    return built(config, StandIn(images, lambda seen: [4] * len(seen["pixel_values"])))


def smolvlm() -> Backbone:
    config = hf.SmolVLMConfig(
        text_config={**TEXT, "model_type": "llama"},
        vision_config={**VISION_SIZES, "image_size": 32, "patch_size": 8},
        scale_factor=2,
        image_token_id=IMAGE,
        pad_token_id=PAD,
    )
    edge = {"longest_edge": 32}
    images = hf.Idefics3ImageProcessor(size=edge, max_image_size=edge, do_image_splitting=False)
    return built(config, StandIn(images, lambda seen: [4] * seen["pixel_values"].shape[1]))


def gemma3(window: int = 512) -> Backbone:
    config = hf.Gemma3Config(
        text_config={**TEXT, **WINDOWED, "sliding_window": window},
        vision_config={**VISION_SIZES, "image_size": 28, "patch_size": 7},
        mm_tokens_per_image=4,
        image_token_index=IMAGE,
        boi_token_index=VISION,
        eoi_token_index=VISION_END,
    )
    words = tokenizer("<vision>")
    for name, number in (("boi", VISION), ("eoi", VISION_END), ("image", IMAGE)):
        setattr(words, f"{name}_token", tiny.SPECIAL[number])
        setattr(words, f"{name}_token_id", number)
    images = hf.Gemma3ImageProcessor(size=SMALL)
    return built(config, hf.Gemma3Processor(images, words, words.chat_template, image_seq_length=4))


def paligemma() -> Backbone:
    """PaliGemma 2: around a Gemma 2 decoder."""
    text = {**TEXT, **WINDOWED, "sliding_window": 512, "model_type": "gemma2", "vocab_size": 1400}
    vision = {**VISION_SIZES, "image_size": 28, "patch_size": 14, "model_type": "siglip_vision_model"}
    vision |= {"vision_use_head": False, "projection_dim": 64}
    config = hf.PaliGemmaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, projection_dim=64, hidden_size=64
    )
    images = hf.SiglipImageProcessor(size=SMALL)
    images.image_seq_length = 4
    words = tokenizer()
    words.image_token, words.image_token_id = "<image>", IMAGE
    return built(config, hf.PaliGemmaProcessor(images, words))


def pixtral_processor(side: int) -> StandIn:
    images = hf.PixtralImageProcessor(size={"longest_edge": 56}, patch_size={"height": side, "width": side})
    return StandIn(images, lambda seen: [int(h // side * (w // side)) for h, w in seen["image_sizes"]])


def mistral3() -> Backbone:
    config = hf.Mistral3Config(
        vision_config={**VISION_SIZES, "model_type": "pixtral", "image_size": 56, "patch_size": 14},
        text_config={**TEXT, "model_type": "mistral", "head_dim": 16, "sliding_window": None},
        image_token_index=IMAGE,
        spatial_merge_size=2,
        vision_feature_layer=-1,
    )
    return built(config, pixtral_processor(28))


def llava_pixtral() -> Backbone:
    """Pixtral 12B as it is published: LLaVA's class around a Pixtral tower and a Mistral decoder."""
    config = hf.LlavaConfig(
        vision_config={**VISION_SIZES, "model_type": "pixtral", "image_size": 56, "patch_size": 14},
        text_config={**TEXT, "model_type": "mistral", "head_dim": 24},
        image_token_index=IMAGE,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
    )
    return built(config, pixtral_processor(14))


def qwen_vl(kind: str, vision: dict[str, Any], rope: dict[str, Any], text: dict[str, Any]) -> Backbone:
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [2, 3, 3], **rope}
    config = getattr(hf, f"{kind}Config")(
        text_config={**TEXT, "rope_parameters": rope, **text},
        vision_config={"depth": 2, "num_heads": 2, "patch_size": 14, "spatial_merge_size": 2, **vision},
        image_token_id=IMAGE,
        video_token_id=UNKNOWN,
        vision_start_token_id=VISION,
        vision_end_token_id=VISION_END,
    )
    return built(config, QwenStandIn())


def qwen2_vl() -> Backbone:
    return qwen_vl("Qwen2VL", {"embed_dim": 32, "hidden_size": 64, "mlp_ratio": 2}, {}, {})


def qwen2_5_vl() -> Backbone:
    vision = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64, "window_size": 56}
    return qwen_vl("Qwen2_5_VL", {**vision, "fullatt_block_indexes": [1]}, {}, {})


def qwen3_vl() -> Backbone:
    vision = {"hidden_size": 32, "intermediate_size": 64, "out_hidden_size": 64, "num_position_embeddings": 16}
    deep = {"deepstack_visual_indexes": [0]}
    return qwen_vl("Qwen3VL", {**vision, **deep}, {"mrope_interleaved": True}, {"head_dim": 16})


def text_only(kind: str, **options: Any) -> Backbone:
    return built(hf.AutoConfig.for_model(kind, **{**TEXT, **options}), TextOnly())


def yarn() -> Backbone:
    """Llama with YaRN, whose attention scaling is in the keys that are stored."""
    rope = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 4.0, "original_max_position_embeddings": 256}
    return text_only("llama", rope_parameters=rope)


MODELS: dict[str, Callable[[], Backbone]] = {
    "llava": tiny.llava,
    "llava_next": llava_next,
    "llava_onevision": llava_onevision,
    "llava_pixtral": llava_pixtral,
    "qwen2_vl": qwen2_vl,
    "qwen2_5_vl": qwen2_5_vl,
    "qwen3_vl": qwen3_vl,
    "idefics3": tiny.idefics3,
    "smolvlm": smolvlm,
    "gemma3": gemma3,
    "internvl": internvl,
    "paligemma": paligemma,
    "mistral3": mistral3,
    "llama": tiny.llama,
    "llama_yarn": yarn,
    "qwen2": lambda: text_only("qwen2"),
    "qwen3": lambda: text_only("qwen3", head_dim=16),
    "gemma3_text": lambda: text_only("gemma3_text", **WINDOWED, sliding_window=512),
    "mistral": lambda: text_only("mistral", sliding_window=512),
    "glm": lambda: text_only("glm", head_dim=16, partial_rotary_factor=0.5),
    "phi3": lambda: text_only("phi3", partial_rotary_factor=0.5),
    "smollm3": lambda: text_only("smollm3", no_rope_layers=[1, 0], sliding_window=None, layer_types=None),
}
"""Every family of the table, and variants of some."""


@cache
def model(name: str) -> Backbone:
    """The family's model, built once."""
    return MODELS[name]()
