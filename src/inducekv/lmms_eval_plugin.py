"""lmms-eval runs its tasks on a backbone with a memory attached.

    lmms-eval --model inducekv --model_args pretrained=<model>,memory=<folder> --tasks <tasks> --batch_size 8

lmms-eval finds this module by the entry point `inducekv` in the group `lmms_eval.models`. Written against lmms-eval
0.7 (its base class `lmms_eval.api.model.lmms` and the six-part requests of its "simple" models); the tests use a
minimal stand-in for that class, since lmms-eval itself is no dependency.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lmms_eval.api.model import lmms
from PIL import Image

from inducekv.backbone import Backbone
from inducekv.error_text import shown
from inducekv.examples import Example
from inducekv.model import EMBEDDED, InducedModel
from inducekv.progress import console_progress
from inducekv.ranks import Ranks

_PICTURE_MARK = re.compile(r"<image(?:\s*\d+)?>\s*")
_SAMPLING = ("temperature", "top_p", "top_k", "num_beams")


class InduceKVForLmmsEval(lmms):
    """A model of lmms-eval: answers and scores read the memory; without one it is the plain backbone.

    Args:
        pretrained: name or folder of the backbone, or "embedded"; by default the one the memory was learned with.
        memory: folder of a memory, or None.
        batch_size: questions in one forward pass.
        device: where the backbone goes; by default where it was loaded.
        max_new_tokens: longest answer where a task does not say.
        options: to the backbone's `from_pretrained` (dtype, device_map ...).

    Raises:
        ValueError: the memory does not fit the backbone, or an argument is wrong.
    """

    is_simple = True

    def __init__(
        self,
        pretrained: str | None = None,
        memory: str | None = None,
        batch_size: int | str = 8,
        device: str | None = None,
        max_new_tokens: int | str = 128,
        max_batch_size: Any = None,
        **options: Any,
    ) -> None:
        super().__init__()
        ranks = Ranks.of_environment()
        self._rank, self._world_size = ranks.rank, ranks.count
        if ranks.count > 1:
            from accelerate import Accelerator

            self.accelerator = Accelerator()
            device = device or ranks.device
        self.model = _loaded(pretrained, memory, options)
        if device is not None:
            self.model.backbone.model.to(device)
        self.model.config = self.model.config.replace(batch_size=_count("batch_size", batch_size))
        self._max_new_tokens = _count("max_new_tokens", max_new_tokens)
        self._progress = console_progress(quiet=self._rank != 0)

    @property
    def device(self) -> Any:
        return self.model.backbone.device

    @property
    def batch_size(self) -> int:
        return self.model.config.batch_size

    def generate_until(self, requests: Sequence[Any]) -> list[str]:
        """One answer for each request `(context, generation options, doc_to_visual, doc_id, task, split)`."""
        answers = [""] * len(requests)
        groups: dict[str, list[int]] = {}
        for place, request in enumerate(requests):
            groups.setdefault(repr(sorted(request.args[1].items())), []).append(place)
        for places in groups.values():
            options = dict(requests[places[0]].args[1])
            examples = [self._example(requests[place].args, visual=2) for place in places]
            texts = self._answered(examples, options)
            for place, text in zip(places, texts, strict=True):
                answers[place] = text
                self.cache_hook.add_partial("generate_until", requests[place].args[:2], text)
        return answers

    def loglikelihood(self, requests: Sequence[Any]) -> list[tuple[float, bool]]:
        """Log probability of each continuation with its end of turn, and whether it is what would be answered.

        Requests are `(context, doc_to_target, doc_to_visual, doc_id, task, split)`.
        """
        examples = []
        for request in requests:
            target = request.args[1]
            doc = self._doc(request.args)
            text = target(doc) if callable(target) else target
            examples.append(self._example(request.args, visual=2, answer=str(text)))
        if not examples:
            return []
        scores = self.model.score(examples, progress=self._progress)
        likelihoods = (-(scores.token_nll * scores.token_mask).sum(dim=1)).tolist()
        said = self._answered([Example(e.question, None, e.images) for e in examples], {})
        return [
            (float(likelihood), text.strip() == (example.answer or "").strip())
            for likelihood, text, example in zip(likelihoods, said, examples, strict=True)
        ]

    def generate_until_multi_round(self, requests: Sequence[Any]) -> list[str]:
        """Not offered: a memory is read for a single question."""
        raise NotImplementedError("inducekv answers single questions; tasks of several rounds are not supported")

    def _answered(self, examples: Sequence[Example], options: dict[str, Any]) -> list[str]:
        until = options.get("until") or []
        sampled = {name: options[name] for name in _SAMPLING if options.get(name)}
        sampled["do_sample"] = bool(options.get("do_sample")) or bool(sampled.get("temperature"))
        if not sampled["do_sample"]:
            sampled = {name: sampled[name] for name in ("do_sample", "num_beams") if name in sampled}
        answers = self.model.answer_all(
            examples,
            progress=self._progress,
            max_new_tokens=int(options.get("max_new_tokens") or self._max_new_tokens),
            **sampled,
        )
        return [_cut(answer.text, [until] if isinstance(until, str) else until) for answer in answers]

    def _doc(self, arguments: Sequence[Any]) -> Any:
        doc_id, task, split = arguments[3:6]
        return self.task_dict[task][split][doc_id]

    def _example(self, arguments: Sequence[Any], *, visual: int, answer: str | None = None) -> Example:
        pictures = arguments[visual](self._doc(arguments)) if arguments[visual] is not None else None
        flat = [p for item in pictures or () for p in (item if isinstance(item, (list, tuple)) else (item,))]
        for picture in flat:
            if not isinstance(picture, Image.Image):
                raise ValueError(
                    f"only pictures can be answered about, task {shown(arguments[4])} gives {type(picture)}"
                )
        return Example(_PICTURE_MARK.sub("", arguments[0]).strip(), answer, tuple(flat))


def manifest() -> Any:
    """What lmms-eval's registry asks the entry point for."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest("inducekv", simple_class_path=f"{__name__}.{InduceKVForLmmsEval.__name__}")


def _loaded(pretrained: str | None, memory: str | None, options: dict[str, Any]) -> InducedModel:
    if pretrained is None and memory is not None:
        from inducekv.memory import KVMemory
        from inducekv.model_name import chosen_model

        pretrained = chosen_model(None, KVMemory.from_pretrained(memory))
    name = pretrained or EMBEDDED
    model = name if name == EMBEDDED else Backbone.from_pretrained(name, **options)
    return InducedModel.from_pretrained(model, memory=None if memory is None else Path(memory))


def _cut(text: str, until: Sequence[str]) -> str:
    """The text before the first of the stop sequences."""
    for stop in filter(None, until):
        text = text.split(stop)[0]
    return text


def _count(name: str, value: Any) -> int:
    try:
        number = int(value)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} must be a whole number, got {shown(value)}") from error
    if number < 1:
        raise ValueError(f"{name} must be at least 1, got {shown(value)}")
    return number
