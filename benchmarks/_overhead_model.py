"""What `overhead.py` measures: a random model of real dimensions, prompts, synthetic memories, and their arithmetic."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn.functional import normalize
from transformers import LlavaConfig, LlavaForConditionalGeneration, Qwen2Config, SiglipVisionConfig

from inducekv import Backbone, InducedModel, InduceKVConfig, KVMemory
from inducekv.encoded import Encoded
from inducekv.entry import Entry
from inducekv.layout import Layout
from inducekv.model import empty_memory
from inducekv.retrieval_key import key_dim
from inducekv.stored_payload import Payload

TASK = "synthetic"


@dataclass(frozen=True)
class Sizes:
    """Dimensions of a model, and how much is asked of it. The defaults are LLaVA-OneVision-0.5B's.

    LLaVA's class with a single tile stands for OneVision's, which adds tiles: the same tower, projector and decoder.
    """

    layers: int = 24
    hidden: int = 896
    mlp: int = 4864
    heads: int = 14
    kv_heads: int = 2
    vocabulary: int = 151_936
    vision_layers: int = 27
    vision_hidden: int = 1152
    vision_mlp: int = 4304
    vision_heads: int = 16
    image: int = 384
    patch: int = 14
    text_tokens: int = 32
    new_tokens: int = 32
    entries: int = 256
    entry_tokens: int = 16
    all_tokens: int = 2048
    top_k: int = 8
    retrieval_keys: int = 100_000
    batch: int = 8

    @property
    def head_dim(self) -> int:
        return self.hidden // self.heads

    @property
    def image_tokens(self) -> int:
        return (self.image // self.patch) ** 2

    @property
    def prompt(self) -> int:
        return self.image_tokens + self.text_tokens


TINY = Sizes(
    layers=4,
    hidden=64,
    mlp=128,
    heads=4,
    vocabulary=96,
    vision_layers=2,
    vision_hidden=32,
    vision_mlp=64,
    vision_heads=2,
    image=28,
    text_tokens=6,
    new_tokens=4,
    entries=12,
    entry_tokens=3,
    all_tokens=24,
    top_k=3,
    retrieval_keys=50,
    batch=2,
)


def model_of(sizes: Sizes, device: str, dtype: torch.dtype) -> Backbone:
    """A model with random weights that never stops by itself. It has no processor: inputs are made from numbers."""
    vision = SiglipVisionConfig(
        hidden_size=sizes.vision_hidden,
        intermediate_size=sizes.vision_mlp,
        num_hidden_layers=sizes.vision_layers,
        num_attention_heads=sizes.vision_heads,
        image_size=sizes.image,
        patch_size=sizes.patch,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=sizes.vocabulary,
        hidden_size=sizes.hidden,
        intermediate_size=sizes.mlp,
        num_hidden_layers=sizes.layers,
        num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.kv_heads,
        max_position_embeddings=32_768,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=None,
    )
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=sizes.vocabulary - 1,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_seq_length=sizes.image_tokens,
        tie_word_embeddings=True,
    )
    torch.manual_seed(0)
    with torch.device(device):
        model = LlavaForConditionalGeneration._from_config(config, dtype=dtype)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return Backbone(model.requires_grad_(False), None)


def inputs_of(sizes: Sizes, backbone: Backbone, images: int = 1, rows: int = 1) -> dict[str, Tensor]:
    """Prompts of `images` pictures, each followed by its text."""
    draw = torch.Generator().manual_seed(images)
    picture = sizes.vocabulary - 1
    parts = []
    for _ in range(images):
        words = torch.randint(1, picture, (rows, sizes.text_tokens), generator=draw)
        parts += [torch.full((rows, sizes.image_tokens), picture), words]
    ids = torch.cat(parts, 1).to(backbone.device)
    pixels = torch.randn(rows * images, 3, sizes.image, sizes.image, generator=draw)
    return {
        "input_ids": ids,
        "attention_mask": torch.ones_like(ids),
        "pixel_values": pixels.to(backbone.device, backbone.dtype),
    }


def induced(sizes: Sizes, backbone: Backbone, entries: int, **changes: object) -> InducedModel:
    """The model with a memory of random entries, read with the defaults but for `changes`."""
    config = InduceKVConfig(budget=2**40, top_k=sizes.top_k, retrieval="in_flight").replace(**changes)
    return InducedModel(backbone, memory_of(sizes, backbone, config, entries), config)


def memory_of(sizes: Sizes, backbone: Backbone, config: InduceKVConfig, entries: int, seed: int = 0) -> KVMemory:
    """Random entries of `entry_tokens` tokens, which also take that many positions."""
    memory = empty_memory(backbone, config)
    draw = torch.Generator().manual_seed(seed)
    shape = (len(memory.layout.layers), sizes.kv_heads, sizes.entry_tokens, sizes.head_dim)
    made = []
    for number in range(entries):
        encoded = Encoded(
            normalize(torch.randn(memory.layout.key_dim, generator=draw), dim=-1),
            torch.randn(shape, generator=draw),
            torch.randn(shape, generator=draw),
            torch.zeros(sizes.entry_tokens, dtype=torch.int8),
            sizes.entry_tokens,
            1,
        )
        made.append(
            Entry.of(encoded, id=str(number), task=TASK, payload_dtype=config.payload_dtype, key_dtype=config.key_dtype)
        )
    memory.add_all(made)
    return memory


def many_keys(sizes: Sizes, backbone: Backbone) -> KVMemory:
    """A memory of `retrieval_keys` entries with real keys and next to no payload."""
    width = key_dim(sizes.hidden, InduceKVConfig.key_pool)
    layout = Layout((backbone.layers - 1,), 1, 1, width)
    memory = KVMemory(2**40, layout, "float32", backbone.fingerprint())
    keys = torch.randn(sizes.retrieval_keys, width, generator=torch.Generator().manual_seed(0))
    payload = Payload(torch.zeros(1, 1, 1, 1), torch.zeros(1, 1, 1, 1), None, None, "float32", 1)
    keys = normalize(keys, dim=-1).half()
    memory.add_all([Entry(str(number), TASK, key, payload, 1, 1) for number, key in enumerate(keys)])
    return memory


@dataclass(frozen=True)
class Flops:
    """Floating-point operations (two a multiply-add) of reading one prompt, by part.

    Causal attention is counted as the half of the square that it needs. Norms, activations and softmax are left out.
    """

    parts: dict[str, float] = field(default_factory=dict)

    @property
    def total(self) -> float:
        return sum(self.parts.values())

    @classmethod
    def of_prefill(cls, sizes: Sizes) -> Flops:
        s, patches, tokens = sizes, sizes.image_tokens, sizes.prompt
        linear = s.vision_layers * (4 * s.vision_hidden**2 + 2 * s.vision_hidden * s.vision_mlp)
        own = 2 * s.hidden**2 + 2 * s.hidden * s.kv_heads * s.head_dim + 3 * s.hidden * s.mlp
        return cls(
            {
                "vision tower, linear": 2 * patches * (linear + 3 * s.patch**2 * s.vision_hidden),
                "vision tower, attention": 4 * patches**2 * s.vision_hidden * s.vision_layers,
                "projector": 2 * patches * (s.vision_hidden * s.hidden + s.hidden**2),
                "decoder, linear": 2 * tokens * own * s.layers,
                "decoder, attention": 2 * tokens**2 * s.hidden * s.layers,
                "head, one token": 2 * s.hidden * s.vocabulary,
            }
        )

    @staticmethod
    def of_memory(sizes: Sizes, tokens: int, layers: int) -> float:
        """What attention over `tokens` memory tokens adds in `layers` layers."""
        return 4.0 * sizes.prompt * tokens * sizes.hidden * layers
