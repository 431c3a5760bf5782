"""The façade: a frozen model that learns tasks into a memory file and names the sources of its answers."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Float32
from torch import Tensor

from inducekv.answers import Answer as Answer
from inducekv.answers import Source as Source
from inducekv.attention import Attachment, attached
from inducekv.backbone import Backbone
from inducekv.cache import DynamicCache, as_cache
from inducekv.calls import lock_of
from inducekv.config import InduceKVConfig, Weighting
from inducekv.error_text import shown
from inducekv.examples import Example, ImageSource
from inducekv.injection import Injection
from inducekv.learner import LearnReport, learn
from inducekv.lookup import Lookup, Reading
from inducekv.memory import KVMemory
from inducekv.memory_config import check_config, concrete, config_of
from inducekv.memory_config import empty_memory as empty_memory
from inducekv.memory_file import check_fingerprint, save, stored_state
from inducekv.model_name import EMBEDDED as EMBEDDED
from inducekv.progress import SILENT, Progress
from inducekv.ranks import ALONE, Ranks
from inducekv.scoring import Scores
from inducekv.training_state import TrainingState

OWN: Literal["own"] = "own"
"""The memory of the `InducedModel` itself."""
Memories = Literal["own"] | KVMemory | None | Sequence[KVMemory | None]


class InducedModel:
    """A frozen vision-language model with a memory.

    Attributes:
        backbone: the model and its processor; never changed.
        memory: what was learned.
        config: how to learn and to read.
        training_state: anchors, needed only to learn more; those of a folder are read when they are first asked for.
    """

    def __init__(
        self,
        backbone: Backbone,
        memory: KVMemory,
        config: InduceKVConfig,
        training_state: TrainingState | None = None,
    ) -> None:
        self.backbone, self.memory, self.config = backbone, memory, config
        self._training_state = training_state
        self._folder: Path | None = None

    @property
    def training_state(self) -> TrainingState:
        """Anchors. Raises ValueError if those of the memory's folder are missing or damaged."""
        if self._training_state is None:
            self._training_state = TrainingState() if self._folder is None else stored_state(self.memory, self._folder)
        return self._training_state

    @training_state.setter
    def training_state(self, state: TrainingState) -> None:
        self._training_state = state

    @classmethod
    def from_pretrained(
        cls,
        model: Any,
        memory: str | Path | KVMemory | None = None,
        config: InduceKVConfig | Mapping[str, Any] | None = None,
        *,
        processor: Any = None,
        **options: Any,
    ) -> "InducedModel":
        """Puts a model and a memory together.

        Args:
            model: a name or folder for `from_pretrained`, "embedded" for the model that ships, a `Backbone`, or a
            loaded
                Hugging Face model (then `processor` is needed).
            memory: a folder that `save_memory` wrote, a `KVMemory`, or None for an empty one.
            config: None takes how the memory is to be read from the memory, for a new one what the model says of itself
                (`inducekv_config.json` beside its weights), and the defaults for the rest. A mapping changes fields of
                that, an `InduceKVConfig` replaces it. A budget in it changes the memory's.
            processor: of a loaded model.
            options: to the model's `from_pretrained` (dtype, device_map ...); `system`: text that every prompt begins
                with, see `Backbone`.

        Raises:
            TypeError: `config` is none of the three.
            ValueError: the model's family is not supported, the memory's files are damaged, or the memory was made for
                another model or with another retrieval key.
            BudgetError: the memory does not fit into `config.budget`.
        """
        if not isinstance(config, InduceKVConfig | Mapping | None):
            raise TypeError(f"config must be an InduceKVConfig, a mapping of its fields, or None; got {shown(config)}")
        backbone = _backbone(model, processor, options)
        folder = None
        if isinstance(memory, str | Path):
            folder = Path(memory)
            memory = KVMemory.from_pretrained(folder, backbone)
        elif memory is not None:
            check_fingerprint(memory.fingerprint, backbone)
        if memory is None:
            config = config if isinstance(config, InduceKVConfig) else backbone.config(config)
            return cls(backbone, empty_memory(backbone, config), config)
        if config is None:
            config = config_of(memory)
        else:
            config = config if isinstance(config, InduceKVConfig) else config_of(memory, config)
            config = concrete(config, memory)
            check_config(backbone, memory, config)
            memory.resize(config.budget)
        induced = cls(backbone, memory, config)
        induced._folder = folder
        return induced

    # -- learning

    def learn(
        self, examples: Sequence[Example], *, task: str, progress: Progress = SILENT, ranks: Ranks = ALONE
    ) -> LearnReport:
        """Learns a task into the memory; see `inducekv.learner.learn`.

        Other threads may answer meanwhile: they read the memory as it was until everything is learned.

        With `payload="auto"` the first task is tuned on first (`inducekv.tuning`): the memory, still empty, is replaced
        by one of the format that was found, and `config` says which.

        With `anchors=0` in the configuration no raw example is kept for later tasks, and those kept so far are dropped
        unread: earlier tasks are then held by their entries alone.
        """
        with lock_of(self):
            return self._learn(examples, task, progress, ranks)

    def _learn(self, examples: Sequence[Example], task: str, progress: Progress, ranks: Ranks) -> LearnReport:
        config, memory, notes = concrete(self.config, self.memory), self.memory, list[str]()
        if config.payload == "auto":
            from inducekv.tuning import tuned_on_first

            config, notes = tuned_on_first(self.backbone, examples, task, config, progress)
            memory = empty_memory(self.backbone, config)
            memory.metadata = dict(self.memory.metadata)
            memory._generations = dict(self.memory._generations)
        state = self.training_state if config.anchors else TrainingState()
        learned = memory.snapshot()  # others read the memory meanwhile
        report = learn(
            self.backbone,
            learned,
            examples,
            task=task,
            config=config,
            training_state=state,
            progress=progress,
            ranks=ranks,
        )
        report.warnings[:0] = notes
        memory.become(learned)
        self.config, self.memory, self.training_state = config, memory, state
        return report

    def forget(self, task: str) -> int:
        """Removes a task: its entries, its threshold and its anchors. Returns how many entries there were.

        A training state that cannot be read is dropped whole, with a warning: what may hold the task must not stay.

        Raises:
            ValueError: no such task.
        """
        with lock_of(self):
            dropped = self.memory.forget(task)
            try:
                self.training_state.forget(task)
            except ValueError as error:
                warnings.warn(f"all examples kept for learning are dropped with {task!r}: {error}", stacklevel=2)
                self.training_state = TrainingState()
            return dropped

    # -- answering

    def answer(
        self, image: ImageSource | str | Sequence[ImageSource | str] | None, question: str, *, max_new_tokens: int = 32
    ) -> Answer:
        """Answers one question about a picture, several, or none."""
        images = () if image is None else (image,) if not isinstance(image, list | tuple) else tuple(image)
        pictures = tuple(Path(picture) if isinstance(picture, str) else picture for picture in images)
        return self.answer_all([Example(question, None, pictures)], max_new_tokens=max_new_tokens)[0]

    def answer_all(
        self,
        examples: Sequence[Example],
        *,
        memory: Memories = OWN,
        progress: Progress = SILENT,
        max_new_tokens: int = 32,
        sources: bool = True,
        batch_size: int | None = None,
        **options: Any,
    ) -> list[Answer]:
        """Answers many questions in batches, each reading its own entries; answers in `examples` are not looked at.

        Args:
            examples: questions; none gives no answers.
            memory: as in `attached`; a list holds one for each example.
            progress: told about batches.
            max_new_tokens: longest answer in tokens.
            sources: also say which entries each answer read, which takes the attention mass of each; False: faster,
                and `Answer.sources` is empty.
            batch_size: questions in one forward pass, at most; None: as the configuration says.
            options: to `model.generate`.

        Raises:
            ValueError: a picture cannot be read, or memories and examples differ in number.
        """
        if not examples:
            return []
        prepared = self.backbone.prepare(
            examples, False, batch_size=self.config.batch_size if batch_size is None else batch_size
        )
        readings = self._readings(memory)
        if isinstance(readings, list) and len(readings) != len(examples):
            raise ValueError(f"{len(readings)} memories were given for {len(examples)} examples; give one for each")
        read: dict[int, list[Source]] = {}

        def injection(rows: Tensor) -> Any:
            some = [readings[row] for row in rows.tolist()] if isinstance(readings, list) else readings
            return Lookup(self.backbone, self.config, some).memory

        def note(rows: Tensor, attachment: Attachment) -> None:
            if attachment.injection is None:
                return
            masses = attachment.mass.float().cpu()
            for place, row in enumerate(rows.tolist()):
                read[row] = attachment.details.of(masses, place, len(rows))

        on_batch = note if sources else None
        texts = self.backbone.generate(
            prepared, injection, max_new_tokens, on_batch=on_batch, progress=progress, **options
        )
        return [Answer(text, read.get(row, [])) for row, text in enumerate(texts)]

    def score(self, examples: Sequence[Example], *, progress: Progress = SILENT) -> Scores:
        """How well the model predicts the examples' answers when each question reads its own entries.

        Raises:
            ValueError: an example has no answer, or a picture cannot be read.
        """
        keys = self.query_keys([Example(e.question, None, e.images) for e in examples], progress=progress)

        lookup = Lookup(self.backbone, self.config, Reading(self.memory, self.config))

        def injection(rows: Tensor) -> Injection | None:
            return lookup(keys[rows.cpu()])

        with torch.no_grad():
            return self.backbone.score(examples, injection, batch_size=self.config.batch_size, progress=progress)

    def query_keys(
        self, examples: Sequence[Example], *, progress: Progress = SILENT
    ) -> Float32[Tensor, "questions key_dim"]:
        """Retrieval keys `[questions, key_dim]` as answering forms them: unit norm, before any centering."""
        return (
            self.backbone.query_keys(
                examples,
                key_layer=self.config.key_layer,
                key_pool=self.config.key_pool,
                batch_size=self.config.batch_size,
                progress=progress,
            )
            .float()
            .cpu()
        )

    @contextmanager
    def attached(
        self, memory: Memories = OWN, *, record_mass: bool = False, check: bool = False
    ) -> Iterator[Attachment]:
        """While open, the model's plain `generate(**inputs)` and `model(**inputs)` read the memory.

        Whenever a prompt is read its rows' keys are computed, their entries retrieved and put before the prompt, in
        every layer that the memory holds payloads of. Nothing is left on the model when the context closes.

        Args:
            memory: by default the model's own; another `KVMemory` for all rows; or a list with a memory or None for
                each row of the batches to come (many customers, one model). Other memories are read with what they
                were learned with (top_k, abstention); where keys are taken and how they are weighted must be the same.
            record_mass: also compute the attention mass of every slot (slower).
            check: first compare memory with prompt tokens on this model (`inducekv.check`), once in a process. How much
                accuracy memory keeps on examples of your own, `inducekv.continual.memory_check.check_memory` measures.

        Raises:
            ValueError: a memory is of another model, or memories cannot be read together; while open, from the model:
                a batch whose rows are not as many as the memories, or a prompt too long for the model's context.
        """
        lookup = Lookup(self.backbone, self.config, self._readings(memory))
        with (
            torch.no_grad(),
            attached(self.backbone, lookup.memory, record_mass=record_mass, check=check) as attachment,
        ):
            yield attachment

    def as_cache(
        self, inputs: dict[str, Any], *, weighting: Weighting | None = None, beams: int = 1
    ) -> tuple[DynamicCache, dict[str, Any]]:
        """The entries that a batch retrieves, as a prefilled cache and the arguments `generate` takes with it.

        For serving code that needs a `Cache`; see `inducekv.cache.as_cache` for what a cache cannot do. `weighting`:
        instead of the configuration's, whose `log` a cache cannot say.

        Raises:
            ValueError: the inputs, the weighting or the memory's layers do not suit a cache.
        """
        with torch.no_grad():
            injection = None
            if len(self.memory):
                reading = Reading(self.memory.snapshot(), self.config)
                keys = self.backbone.query_keys_from_inputs(
                    key_layer=self.config.key_layer, key_pool=self.config.key_pool, **inputs
                )
                injection = reading.injection(reading.retrieved(keys), self.backbone, weighting)
            return as_cache(self.backbone, injection, inputs, beams=beams)

    def _readings(self, memory: Memories) -> Reading | list[Reading | None] | None:
        if memory == OWN:
            return Reading(self.memory, self.config)
        if isinstance(memory, list | tuple):
            known: dict[int, Reading] = {}  # a memory given for several rows is checked, and read, once
            return [None if m is None else known.setdefault(id(m), self._reading(m)) for m in memory]
        return None if memory is None else self._reading(memory)

    def _reading(self, memory: Any) -> Reading:
        if not isinstance(memory, KVMemory):
            raise TypeError(
                f"a memory to attach is a KVMemory, None, or a list of these for the rows; got {shown(memory)}"
            )
        if memory is self.memory:
            return Reading(memory, self.config)
        check_fingerprint(memory.fingerprint, self.backbone)
        config = config_of(memory) if "reading" in memory.metadata else self.config
        formats = {"payload_dtype": memory.payload_dtype, "key_dtype": memory.layout.key_dtype}
        check_config(self.backbone, memory, self.config.replace(payload="none", **formats))  # it is only read
        return Reading(memory, config.replace(key_layer=self.config.key_layer))

    # -- files

    def save_memory(self, directory: str | Path) -> None:
        """Writes the memory, and the training state beside it in its own file; both or neither.

        Raises:
            ValueError, OSError: as `memory_file.save`.
        """
        state = self._training_state
        if state is None and self._folder is not None and self._folder.resolve() != Path(directory).resolve():
            state = self.training_state
        save(self.memory, Path(directory), state)

    def load_memory(self, directory: str | Path) -> None:
        """Takes another memory (and its training state) in place of this one, which is kept on an error.

        Raises:
            ValueError: as `from_pretrained`.
        """
        other = InducedModel.from_pretrained(self.backbone, memory=directory)
        self.memory, self._training_state, self.config = other.memory, None, other.config
        self._folder = other._folder


def _backbone(model: Any, processor: Any, options: dict[str, Any]) -> Backbone:
    if isinstance(model, Backbone):
        if options:
            raise TypeError(
                f"{', '.join(options)}: options for loading, but a Backbone is loaded already; leave them out"
            )
        return model
    if isinstance(model, str | Path):
        if str(model) == EMBEDDED:
            from inducekv.embedded import path

            model = path()
        return Backbone.from_pretrained(model, **options)
    if processor is None:
        raise ValueError(
            "a loaded model needs its processor too: InducedModel.from_pretrained(model, processor=...); "
            "or give the model's name or folder"
        )
    return Backbone(model, processor, **options)
