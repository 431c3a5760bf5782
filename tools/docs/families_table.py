"""Tables of supported families: what the code says of them, and what the parity suite declares and has shown."""

import ast
import json
from functools import cache
from pathlib import Path
from typing import Any

import tiny_families
from inducekv.doctor import diagnose
from inducekv.families import DECODERS, FAMILIES, UNSUPPORTED_ROPE

ROOT = Path(__file__).parents[2]
CHECKPOINTS = {
    "gemma3": "google/gemma-3-4b-it",
    "gemma3_text": "google/gemma-3-1b-it",
    "glm": "zai-org/glm-4-9b-chat-hf",
    "idefics3": "HuggingFaceM4/Idefics3-8B-Llama3",
    "internvl": "OpenGVLab/InternVL3-1B-hf",
    "llama": "meta-llama/Llama-3.2-1B-Instruct",
    "llava": "llava-hf/llava-1.5-7b-hf",
    "llava_next": "llava-hf/llava-v1.6-mistral-7b-hf",
    "llava_onevision": "llava-hf/llava-onevision-qwen2-0.5b-ov-hf",
    "llava_pixtral": "mistral-community/pixtral-12b",
    "mistral": "mistralai/Mistral-7B-Instruct-v0.3",
    "mistral3": "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
    "paligemma": "google/paligemma2-3b-mix-224",
    "phi3": "microsoft/Phi-3-mini-4k-instruct",
    "qwen2": "Qwen/Qwen2.5-0.5B-Instruct",
    "qwen2_5_vl": "Qwen/Qwen2.5-VL-3B-Instruct",
    "qwen2_vl": "Qwen/Qwen2-VL-2B-Instruct",
    "qwen3": "Qwen/Qwen3-0.6B",
    "qwen3_vl": "Qwen/Qwen3-VL-2B-Instruct",
    "smollm3": "HuggingFaceTB/SmolLM3-3B",
    "smolvlm": "HuggingFaceTB/SmolVLM2-500M-Video-Instruct",
}
"""A published checkpoint of each tested model's architecture. Nothing in the project loads it."""
TOKEN_TYPES = {
    "images": "a picture's tokens see each other both ways",
    "prefix": "the whole prompt sees itself both ways",
    None: "",
}
MARKS = {"passed": "✓", "failed": "**✗**", "declared": "○"}
NOT_FOR_TEXT = "a text-only model sees no pictures"


@cache
def models() -> dict[str, Any]:
    """What `doctor` says of every tiny model that the parity suite runs."""
    return {name: diagnose(name, tiny_families.model(name).model.config) for name in tiny_families.MODELS}


def ways() -> list[str]:
    """Ways of running a model that the parity suite declares, as its test ids name them."""
    source = ast.parse((ROOT / "tests" / "test_family_parity.py").read_text(encoding="utf-8"))
    for node in source.body:
        if isinstance(node, ast.AnnAssign) and getattr(node.target, "id", None) == "WAYS":
            assert isinstance(node.value, ast.List)
            return [way.id.replace("_", " ") for way in node.value.elts if isinstance(way, ast.Name)]
    raise LookupError("tests/test_family_parity.py declares no list WAYS")


def results() -> list[dict[str, Any]]:
    """Results kept by `parity_results.py`, the newest transformers first."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "docs" / "data").glob("parity-*.json")]
    return sorted(found, key=lambda r: [int(x) for x in r["transformers"].split(".") if x.isdigit()], reverse=True)


def families() -> str:
    """A row for every family of the table: where it is found, what is special about it."""
    lines = ["| `model_type` | a checkpoint of it | text decoder | pictures | what differs |", "|---|---|---|---|---|"]
    for kind in sorted(FAMILIES, key=lambda kind: (FAMILIES[kind].image_token is None, kind)):
        family = FAMILIES[kind]
        variants = [name for name, found in models().items() if found.family == kind]
        checkpoints = "<br>".join(f"`{CHECKPOINTS[name]}`" for name in variants if name in CHECKPOINTS)
        decoders = ", ".join(f"`{d}`" for d in dict.fromkeys(models()[name].decoder for name in variants))
        differs = [
            TOKEN_TYPES[family.token_types],
            "three-axis positions (mRoPE)" if family.state else "",
            f"positions start at {family.first_position}" if family.first_position else "",
            f"its processor needs `{family.processor_needs}`" if family.processor_needs else "",
            *_rotary(variants),
        ]
        pictures = "yes" if family.image_token is not None else "no"
        lines.append(f"| `{kind}` | {checkpoints} | {decoders} | {pictures} | {'; '.join(filter(None, differs))} |")
    return "\n".join(lines)


def _rotary(variants: list[str]) -> list[str]:
    notes = []
    for name in variants:
        found = models()[name]
        decoder = DECODERS[found.decoder]
        if found.sliding_layers:
            notes.append("layers with a sliding window")
        if decoder.interleaved:
            notes.append("neighbouring dimensions rotate together")
        text = tiny_families.model(name).text_model
        if any(decoder.rope(text.config, layer) is None for layer in range(found.layers)):
            notes.append("layers without rotary embedding")
    return list(dict.fromkeys(notes))


def decoders() -> str:
    """Text decoders that a family may be built around, and rotary embeddings that are refused."""
    named = ", ".join(f"`{name}`" for name in sorted(DECODERS))
    refused = "; ".join(f"`{name}` ({why})" for name, why in sorted(UNSUPPORTED_ROPE.items()))
    return f"Text decoders: {named}.\n\nRotary embeddings that are refused: {refused}."


def parity() -> str:
    """Models by ways of running them: passed, failed, skipped with the reason, or declared without a kept result."""
    runs = results()
    parts = []
    for run in runs or [{"transformers": None, "outcomes": {}}]:
        if run["transformers"]:
            passed = sum(o == "passed" for each in run["outcomes"].values() for o in each.values())
            parts.append(f"**transformers {run['transformers']}, torch {run['torch']}, CPU**: {passed} passed.\n")
        parts.append(_matrix(run["outcomes"]))
    return "\n".join(parts)


def _matrix(outcomes: dict[str, dict[str, str]]) -> str:
    columns, reasons = ways(), []
    lines = ["| tiny model | " + " | ".join(columns) + " |", "|---|" + ":-:|" * len(columns)]
    for name in tiny_families.MODELS:
        cells = []
        for way in columns:
            outcome = outcomes.get(name, {}).get(way, "declared")
            why = outcome.removeprefix("skipped: ")
            if why == NOT_FOR_TEXT:
                cells.append("–")
            elif why != outcome:
                reasons += [why] if why not in reasons else []
                cells.append(f"({reasons.index(why) + 1})")
            else:
                cells.append(MARKS[outcome])
        lines.append(f"| `{name}` | " + " | ".join(cells) + " |")
    legend = ["✓ passed", "– the model sees no pictures"]
    said = [cell for line in lines for cell in line.split(" | ")]
    legend += ["✗ failed"] if MARKS["failed"] in said else []
    legend += ["○ declared by the suite, no result kept yet"] if any("○" in cell for cell in said) else []
    legend += [f"({i}) skipped: {why}" for i, why in enumerate(reasons, 1)]
    return "\n".join([*lines, "", "; ".join(legend) + ".", ""])
