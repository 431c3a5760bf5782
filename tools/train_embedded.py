"""Train the embedded model from nothing: draw the pools, train the tower, train the decoder, write the model.

    python tools/train_embedded.py                 # everything, resumes where it stopped
    python tools/train_embedded.py --export-only   # write the model from the last checkpoint

Seeded; progress is printed and kept in ``build/embedded/curves.jsonl``. The model card says how long the shipped
model took.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import Idefics3ForConditionalGeneration

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from embedded_training.architecture import build_model  # noqa: E402
from embedded_training.decoder import Features, Statistics, Training, fold_statistics, statistics_of  # noqa: E402
from embedded_training.episodes import Layout, Lessons  # noqa: E402
from embedded_training.pools import make_pools  # noqa: E402
from embedded_training.tower import train_tower  # noqa: E402
from embedded_training.vocabulary import build_processor, build_tokenizer  # noqa: E402
from inducekv.embedded import path  # noqa: E402


def export(trained: Idefics3ForConditionalGeneration, statistics: Statistics, processor, folder: Path) -> int:
    """Write the stock model and its processor; returns the bytes of the weights."""
    model = copy.deepcopy(trained)
    fold_statistics(model, statistics)
    model.model.text_model.set_attn_implementation("sdpa")
    end = processor.tokenizer.eos_token_id
    model.generation_config.eos_token_id = end
    model.generation_config.pad_token_id = processor.tokenizer.pad_token_id
    model.generation_config.bos_token_id = None
    folder.mkdir(parents=True, exist_ok=True)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return sum(file.stat().st_size for file in folder.glob("*.safetensors"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--tower-steps", type=int, default=8_500)
    parser.add_argument("--decoder-steps", type=int, default=20_000)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument(
        "--build", type=Path, default=ROOT / "build" / "embedded", help="where checkpoints and curves are kept"
    )
    parser.add_argument("--output", type=Path, default=path(), help="where the model is written")
    parser.add_argument("--export-only", action="store_true", help="write the model from the last checkpoint and stop")
    options = parser.parse_args()
    if not 0 <= options.seed < 9:
        parser.error(f"--seed must be 0 to 8 (higher seeds draw the tested classes), got {options.seed}")

    torch.set_num_threads(options.threads)
    build, start = options.build, time.time()
    build.mkdir(parents=True, exist_ok=True)

    def report(stage: str, step: int, figures: dict) -> None:
        line = json.dumps({"stage": stage, "step": step, "seconds": round(time.time() - start), **figures})
        print(line, flush=True)
        with (build / "curves.jsonl").open("a") as curves:
            curves.write(line + "\n")

    pools = make_pools(1 + options.seed, 5000, 12, 48_000, 12_000, build / "pools.npz")
    unseen = make_pools(9, 400, 4, 2_000, 800, build / "unseen.npz")
    tokenizer = build_tokenizer(options.seed)
    processor = build_processor(tokenizer)
    torch.manual_seed(options.seed)
    model = build_model(tokenizer)
    tower = model.model.vision_model
    tower.set_attn_implementation("eager")
    checkpoint = build / "decoder.pt"
    if options.export_only:
        model.load_state_dict(torch.load(checkpoint, weights_only=True)["model"])
        size = export(model, statistics_of(model, pools), processor, options.output)
        print(f"{size:,} bytes of weights in {options.output}")
        return

    train_tower(
        tower, pools, unseen, options.tower_steps, options.seed, lambda s, f: report("tower", s, f), build / "tower.pt"
    )
    tower.requires_grad_(False).eval()
    statistics = statistics_of(model, pools)
    torch.nn.init.normal_(model.model.connector.modality_projection.proj.weight, std=384**-0.5)
    training = Training(
        model,
        Layout(tokenizer),
        Features(model, pools, statistics),
        Lessons(pools, np.random.default_rng([options.seed, 31])),
        (Features(model, unseen, statistics), unseen),
        options.decoder_steps,
        options.seed,
    )
    if checkpoint.exists():
        training.load_state_dict(torch.load(checkpoint, weights_only=True))

    def keep(step: int, figures: dict) -> None:
        torch.save(training.state_dict(), checkpoint.with_suffix(".new"))
        checkpoint.with_suffix(".new").replace(checkpoint)
        report("decoder", step, figures)

    training.run(keep)
    print(f"{export(model, statistics, processor, options.output):,} bytes of weights in {options.output}")


if __name__ == "__main__":
    main()
