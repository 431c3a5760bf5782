"""Real pictures in the plain format go through reading, learning and answering. They are not part of the project."""

from pathlib import Path

import pytest

from inducekv import InducedModel, InduceKVConfig, read_examples
from inducekv.continual.streams import stream_named

ROOT = Path(__file__).parents[2] / "shared" / "data" / "real-stream"
TASKS = ("flags", "grocery", "hand-digits", "letters")

pytestmark = pytest.mark.skipif(not ROOT.is_dir(), reason="the real pictures are kept outside the project")


@pytest.mark.parametrize("task", TASKS)
def test_real_tasks_are_read_learned_and_answered(task: str, tmp_path: Path) -> None:
    train, test = (read_examples(ROOT / task / f"{part}.jsonl") for part in ("train", "test"))
    assert len(train) >= 200 and len(test) >= 200
    model = InducedModel.from_pretrained("embedded", config=InduceKVConfig(budget="48KiB", outer_steps=2))
    report = model.learn(train[:: len(train) // 16][:16], task=task)
    model.save_memory(tmp_path)
    again = InducedModel.from_pretrained("embedded", memory=tmp_path)
    assert 0 < len(again.memory) == len(report.chosen) and again.memory.nbytes <= 48 * 1024
    questions = test[:4]
    assert again.answer_all(questions, max_new_tokens=8) == model.answer_all(questions, max_new_tokens=8)


def test_the_folder_stream_reads_them_all() -> None:
    stream = stream_named("folder", root=ROOT, limit=3)
    assert stream.tasks == list(TASKS)
    assert all(len(e.train) == len(e.test) == 3 for e in stream.experiences)
