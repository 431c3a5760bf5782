"""The shape of the embedded model: a stock Idefics3, with a picture in four tokens."""

from __future__ import annotations

from transformers import Idefics3Config, Idefics3ForConditionalGeneration, PreTrainedTokenizerBase

from inducekv.embedded.drawings import SIZE

IMAGE_TOKENS = 4


def build_model(tokenizer: PreTrainedTokenizerBase) -> Idefics3ForConditionalGeneration:
    """A fresh model with random weights. Patches of 8 pixels: 16 of them, four of which the connector joins into a
    token."""
    config = Idefics3Config(
        vision_config={
            "hidden_size": 96,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": SIZE,
            "patch_size": 8,
        },
        text_config={
            "model_type": "llama",
            "vocab_size": len(tokenizer),
            "hidden_size": 144,
            "intermediate_size": 400,
            "num_hidden_layers": 5,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "head_dim": 32,
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            "tie_word_embeddings": True,
            "pad_token_id": tokenizer.pad_token_id,
            "bos_token_id": None,
            "eos_token_id": tokenizer.eos_token_id,
        },
        scale_factor=2,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        pad_token_id=tokenizer.pad_token_id,
        tie_word_embeddings=True,
    )
    return Idefics3ForConditionalGeneration(config)
