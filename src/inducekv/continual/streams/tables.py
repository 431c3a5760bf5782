"""The published benchmarks: order of tasks, files, graders and what must be said with a number measured on them."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

from inducekv.continual.streams.published import PublishedStream, PublishedTask
from inducekv.continual.streams.references import coco_captions, textvqa
from inducekv.continual.streams.rows import in_english, slake, vqa_rad, vqacl


def _paths(folders: tuple[str, ...], *names: str) -> tuple[str, ...]:
    return tuple(f"{folder}/{name}" if folder else name for folder, name in product(folders, names))


_INSTRUCTIONS = ("playground/Instructions_Original", "Instructions_Original", "Instruction_Type1", "Instructions")
_COIN = (
    ("ScienceQA", "ScienceQA", "scienceqa_letter"),
    ("TextVQA", "TextVQA", "vqa_soft"),
    ("ImageNet", "ImageNet", "imagenet_containment"),
    ("GQA", "GQA", "gqa"),
    ("VizWiz", "VizWiz", "upper"),
    ("Grounding", "Grounding", "iou"),
    ("VQAv2", "VQAv2", "upper"),
    ("OCR-VQA", "OCRVQA", "ocr_vqa"),
)


def _coin_task(name: str, folder: str, grader: str) -> PublishedTask:
    instructions = _paths(_INSTRUCTIONS, folder)
    task = PublishedTask(
        name,
        grader,
        train=_paths(instructions, "train.json"),
        test=_paths(instructions, "test.json", "val.json", "test_1.json"),
        images=("cl_dataset", "."),
    )
    if name != "TextVQA":
        return task
    given = _paths(("cl_dataset/TextVQA", "TextVQA", *instructions), "TextVQA_0.5.1_val.json")
    return replace(task, references=given, read_references=textvqa)


_COIN_TABLE = tuple(_coin_task(*row) for row in _COIN)
_COIN_TASKS = tuple(task.name for task in _COIN_TABLE)

_UCIT = (
    ("ImageNet-R", ("ImageNet-R",), "upper"),
    ("ArxivQA", ("ArxivQA",), "upper"),
    ("VizWiz-Caption", ("VizWiz-caption", "VizWiz-cap", "VizWiz"), "coco_caption"),
    ("IconQA", ("IconQA",), "upper"),
    ("CLEVR-Math", ("CLEVR-Math", "CLEVR"), "upper"),
    ("Flickr30k", ("Flickr30k", "Flickr30k-cap"), "coco_caption"),
)


def _ucit_task(name: str, folders: tuple[str, ...], grader: str) -> PublishedTask:
    places = _paths(("", "instructions"), *folders)
    captions = grader == "coco_caption"
    return PublishedTask(
        name,
        grader,
        train=_paths(places, "train.json", "train_4w.json", "train_brief_4w.json"),
        test=_paths(places, "test_3000.json", "test.json"),
        images=("datasets", "."),
        references=_paths(places, "val_coco_type_3000.json", "test_coco_type.json") if captions else (),
        read_references=coco_captions if captions else None,
    )


def _mllm_cl_task(name: str, grader: str, prefixes: tuple[str, ...], folder: str, test: str) -> PublishedTask:
    folders = tuple(dict.fromkeys(_paths(prefixes, folder, folder.lower())))
    tests = tuple(dict.fromkeys(_paths(prefixes, test, test.lower())))
    return PublishedTask(
        name, grader, _paths(folders, "train.json"), _paths(tests, "test.json"), images=folders, test_images=tests
    )


_DOMAINS = ("", "Domain_data", "MLLM-CL")
_ABILITIES = ("", "Ability_data", "MLLM-CL")
_DCL_TABLE = tuple(
    _mllm_cl_task(name, grader, _DOMAINS, name, name)
    for name, grader in (
        ("RS", "domain_containment"),
        ("Med", "pathology_containment"),
        ("AD", "domain_containment"),
        ("Sci", "science"),
        ("Fin", "finance"),
    )
)
_ACL_TABLE = tuple(
    _mllm_cl_task(name, grader, _ABILITIES, folder, f"{folder}_test")
    for name, folder, grader in (
        ("OCR", "OCR", "domain_containment"),
        ("Math & Logic", "Math", "exact"),
        ("Visual Perception", "VP", "exact"),
        ("GUI Agent", "APP", "exact"),
    )
)

VQA_TASKS = (
    "recognition",
    "location",
    "judge",
    "commonsense",
    "count",
    "action",
    "color",
    "type",
    "subcategory",
    "causal",
)
_PARTITION = "datasets/vqa/Partition_Q/karpathy"
_VQACL_TABLE = tuple(
    PublishedTask(
        task,
        "vqa_label",
        train=(f"{_PARTITION}_train_q_{task}.json",),
        test=(f"{_PARTITION}_test_q_{task}.json",),
        validation=(f"{_PARTITION}_val_q_{task}.json",),
        images=("datasets/COCO", "COCO2014", "COCO", "datasets"),
        row=vqacl,
    )
    for task in VQA_TASKS
)
_CLMOE_TABLE = tuple(
    PublishedTask(
        task,
        "upper",
        train=(f"CL4VQA/train/train_q_{task}.json",),
        test=(f"CL4VQA/test/test_q_{task}.json",),
        images=("data", "cl_dataset", "."),
    )
    for task in VQA_TASKS
)
_MEDICAL_TABLE = (
    PublishedTask(
        "PathVQA",
        "medical_exact",
        train=("data_PathVQA/pathvqa_train.json",),
        test=("data_PathVQA/pathvqa_test.json",),
        validation=("data_PathVQA/pathvqa_val.json",),
        images=("data_PathVQA/images",),
        row=vqa_rad,
    ),
    PublishedTask(
        "SLAKE",
        "medical_exact",
        train=("data_Slake/train.json",),
        test=("data_Slake/test.json",),
        validation=("data_Slake/validate.json",),
        images=("data_Slake/imgs",),
        row=slake,
        keeps=in_english,
    ),
    PublishedTask(
        "VQA-RAD",
        "medical_exact",
        train=("data_RAD/trainset.json",),
        test=("data_RAD/testset.json",),
        images=("data_RAD/images",),
        row=vqa_rad,
    ),
)
_LIIT_TABLE = tuple(
    PublishedTask(name, "exact", (f"{folder}/train.json",), (f"{folder}/test.json",), images=(folder,))
    for name, folder in (
        ("LLaVA-665K", "llava"),
        ("M3IT", "m3it"),
        ("MiniGPT-4", "minigpt4"),
        ("MANTIS", "mantis"),
        ("LAMM", "lamm"),
        ("VisionFLAN", "visionflan"),
    )
)


def _stream(name: str, summary: str, table: tuple[PublishedTask, ...], protocol: str) -> PublishedStream:
    return PublishedStream(name, summary, tuple(task.name for task in table), protocol, table)


PUBLISHED_STREAMS = (
    _stream(
        "coin/p1",
        "CoIN, eight tasks, from LLaVA's pre-trained projector",
        _COIN_TABLE,
        "Start from Vicuna-7B-v1.5 with the pre-trained projector alone; compare with no number of coin/p2. BWT is "
        "over T. VQAv2 and VizWiz are graded against one answer.",
    ),
    _stream(
        "coin/p2",
        "CoIN, eight tasks, from the instruction-tuned LLaVA-1.5",
        _COIN_TABLE,
        "Start from the instruction-tuned LLaVA-1.5-7B, which has seen some of these data: zero-shot is already 54.2. "
        "Compare with no number of coin/p1.",
    ),
    _stream(
        "ucit",
        "UCIT, six tasks unlike the backbone's training data",
        tuple(_ucit_task(*row) for row in _UCIT),
        "Captions: mean of seven COCO metrics; METEOR and the splitting of words differ from the published Java tools, "
        "and references go with their picture instead of the order of predictions.",
    ),
    _stream(
        "mllm-dcl",
        "MLLM-CL's five domains",
        _DCL_TABLE,
        "BWT is over T-1. Med is graded by containment, which lifts yes/no questions (faithful); fixed reads the first "
        "word.",
    ),
    _stream(
        "mllm-acl",
        "MLLM-CL's four abilities",
        _ACL_TABLE,
        "Published Math & Logic is graded by a language model and GUI by a server; here both are exact match (CHOICE), "
        "so compare only numbers of this bench.",
    ),
    _stream(
        "vqav2/vqacl",
        "VQAv2 by ten question types, VQACL's form",
        _VQACL_TABLE,
        "Soft labels over 3,129 answers; report AP and AF (largest earlier score minus last), and zero-shot.",
    ),
    _stream(
        "vqav2/cl-moe",
        "VQAv2 by ten question types, CL-MoE's form",
        _CLMOE_TABLE,
        "Exact match with one answer, so not comparable with vqav2/vqacl. Report zero-shot: it was 61.5 on the "
        "published base, above the published 51.3.",
    ),
    _stream(
        "medical",
        "PathVQA, SLAKE (English) and VQA-RAD",
        _MEDICAL_TABLE,
        "Closed questions by the first word, open ones exact; token recall (LLaVA-Med) is the grader medical_recall. "
        "The order is ours (CHOICE).",
    ),
    _stream(
        "liit",
        "Adapt-infinity's lifelong instruction tuning, six data sets",
        _LIIT_TABLE,
        "The setting keeps all earlier data in a pool and tests on other benchmarks; a fixed footprint must be stated "
        "apart from the pool. Test files and folder names are the user's own (CHOICE): <data set>/{train,test}.json.",
    ),
)
"""Every published stream."""
