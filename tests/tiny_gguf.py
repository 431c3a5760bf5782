"""A tiny random model in a GGUF file."""

from pathlib import Path

import numpy as np
import pytest

import tiny


def write_gguf(path: Path) -> Path:
    """A tiny Llama with a byte-level tokenizer, as llama.cpp writes it."""
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    letters = [chr(c) for c in (*range(33, 127), 288, 266)]  # the last two: how GPT-2 writes a space and a line's end
    tokens = ["<unk>", "<s>", "</s>", *letters, "th"]
    for name, number in {
        "context_length": 256,
        "embedding_length": 32,
        "block_count": 2,
        "feed_forward_length": 32,
        "rope.dimension_count": 8,
        "attention.head_count": 4,
        "attention.head_count_kv": 2,
        "vocab_size": len(tokens),
    }.items():
        writer.add_uint32(f"llama.{name}", number)
    writer.add_float32("llama.attention.layer_norm_rms_epsilon", 1e-5)
    writer.add_float32("llama.rope.freq_base", 10000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([3, 3, 3] + [1] * (len(tokens) - 3))
    writer.add_token_merges(["t h"])
    for name, number in {"bos": 1, "eos": 2, "unknown": 0}.items():
        writer.add_uint32(f"tokenizer.ggml.{name}_token_id", number)
    writer.add_chat_template(tiny.TEMPLATE.replace("{{ bos_token }}", "").replace("<end>", "</s>"))
    draw = np.random.default_rng(0)
    shapes = {"token_embd": (len(tokens), 32), "output_norm": (32,), "output": (len(tokens), 32)}
    for layer in range(2):
        shapes |= {f"blk.{layer}.{part}_norm": (32,) for part in ("attn", "ffn")}
        shapes |= {f"blk.{layer}.attn_{part}": (32, 32) for part in ("q", "output")}
        shapes |= {f"blk.{layer}.attn_{part}": (16, 32) for part in ("k", "v")}
        shapes |= {f"blk.{layer}.ffn_{part}": (32, 32) for part in ("gate", "up", "down")}
    for name, shape in shapes.items():
        weights = draw.standard_normal(shape).astype(np.float32)
        quantised = len(shape) == 2
        kind = gguf.GGMLQuantizationType.Q8_0
        data = gguf.quants.quantize(weights, kind) if quantised else weights
        writer.add_tensor(f"{name}.weight", data, raw_dtype=kind if quantised else None)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path
