"""A recipe: models, data, and a list of stages that one loop runs. Everything `--config` can say, with its defaults."""

from __future__ import annotations

import dataclasses
import math
from typing import Annotated, Any, Literal

import pydantic

from vlm_jax.config import complete, config_class
from vlm_jax.data.plan.mixture import MixtureConfig
from vlm_jax.data.prepare import LossReduction
from vlm_jax.errors import UserError
from vlm_jax.models.layers import Compute
from vlm_jax.sharding import MeshConfig
from vlm_jax.system import System
from vlm_jax.training.data import MetaData, PocketData, TFDSData
from vlm_jax.training.objectives import DistillObjective, GenerateObjective, Models, TeacherConfig
from vlm_jax.training.optimizer import OptimizerConfig

Objective = Annotated[GenerateObjective | DistillObjective, pydantic.Field(discriminator="type")]
Data = Annotated[PocketData | TFDSData | MetaData, pydantic.Field(discriminator="type")]


@config_class
class Stage:
    """One stage of training. It starts with a fresh optimizer and from what the stage before left.

    Attributes:
      name: shown in logs and reports; unique in the recipe.
      objective: what is minimised.
      trainable: ordered path globs, '!' takes back, last match wins; all else is frozen and has no optimizer state.
      tune_from_layer: part -> number of the first of its layers that trains, of which then nothing else does: no
        embedding and no last norm (`tune_vision_tower_from_layer` of TinyLLaVA_Factory).
      image_size: side of the tiles in this stage, in pixels; the system's own when None. Learned positions are
        interpolated when a stage begins with another size than the one before had, and trained on from there.
      template: prompt format of this stage; the system's own when None (LLaVA aligns on captions with no prompt).
      steps: optimizer steps.
      epochs: in place of `steps`, how often the mixture is gone through.
      accumulation: micro-batches that one step is made of (the batch's rows are split among them).
      drop_path: rate in this stage; the vision config's own when None.
      data: which records, how often, and the static shape of a batch.
      loss_reduction: what a supervised token of a conversation with x of them weighs: 1 (`token`), 1/x (`sample`) or
        1/sqrt(x) (`square`, as in InternVL's domain adaptation, so that long answers do not drown short ones).
    """

    name: str
    objective: Objective
    trainable: tuple[str, ...]
    data: MixtureConfig
    steps: int = 0
    epochs: float = 0.0
    loss_reduction: LossReduction = "token"
    accumulation: int = 1
    drop_path: float | None = None
    tune_from_layer: dict[str, int] = dataclasses.field(default_factory=dict)
    image_size: int | None = None
    template: str | None = None
    optimizer: OptimizerConfig = OptimizerConfig()

    def __post_init__(self) -> None:
        if min(self.steps, self.epochs) < 0 or (self.steps > 0) == (self.epochs > 0):
            raise UserError(
                f"config.stages '{self.name}': either steps or epochs must be positive, they are {self.steps} and "
                f"{self.epochs:g}"
            )
        if not math.isfinite(self.epochs):
            raise UserError(f"config.stages '{self.name}': epochs must be finite, got {self.epochs:g}")
        if self.accumulation < 1 or self.data.rows % self.accumulation:
            raise UserError(
                f"config.stages '{self.name}': accumulation ({self.accumulation}) must be at least 1 and divide "
                f"data.rows ({self.data.rows})"
            )
        if any(first < 0 for first in self.tune_from_layer.values()):
            raise UserError(f"config.stages '{self.name}': tune_from_layer: must be at least 0, {self.tune_from_layer}")

    @property
    def rules(self) -> tuple[str, ...]:
        """`trainable`, and behind it the globs of `tune_from_layer`."""
        from_layers = ((f"!{part}/**", f"{part}/layers/{{{n}..}}/**") for part, n in self.tune_from_layer.items())
        return (*self.trainable, *(glob for globs in from_layers for glob in globs))


@config_class
class Start:
    """Released or trained weights to begin with; nothing of it is read any more when a run is continued.

    Attributes:
      model: a training workdir, or a model folder in any layout.
      vision, decoder: in its place, a vision tower's folder and a language model's: a fresh connector comes between
        them, and the tokenizer gets the tokens of the prompt formats. They become the recipe's system or, where it has
        none, an InternVL. Of a system that projects patches without a tower there is `decoder` alone.
    """

    model: str = ""
    vision: str = ""
    decoder: str = ""

    def check(self, tower: bool = True) -> None:
        """Not when it is made: a recipe's file leaves the folders to the command line.

        Args:
          tower: whether the system has a tower, which can come from a folder.

        Raises:
          UserError: neither a model's folder is given nor all parts', or more than that.
        """
        wanted = ("vision", "decoder") if tower else ("decoder",)
        given = tuple(name for name in ("model", "vision", "decoder") if getattr(self, name))
        if given not in (("model",), wanted):
            which = "of both parts" if tower else "of the language model (there is no tower)"
            raise UserError(
                f"config.start: give the folder of a model, as --config.start.model=DIR, or {which}, as "
                f"{' '.join(f'--config.start.{name}=DIR' for name in wanted)}"
            )


@config_class
class EvaluationConfig:
    """What is measured at the end, and what is looked at on the way.

    Attributes:
      split: of the data.
      limit: how many questions of each task; 0 takes all.
      max_new_tokens, batch_size: of the answers' generation.
      gallery: pictures shown in the report.
      controls: pictures that everything is asked again with, to see that the model looks at its own
        (`vlm_jax/evaluation/controls.py`); each takes as long as the questions themselves.
      watch: how many validation questions of each task are asked at the end of every stage that trains a model to
        answer, always the same ones; 0 asks none.
      watch_steps: after how many steps they are asked within a stage, too; 0 is never.
    """

    split: Literal["validation", "test"] = "test"
    limit: int = 0
    max_new_tokens: int = 40
    batch_size: int = 50
    gallery: int = 36
    controls: tuple[Literal["blank", "shuffled", "wrong"], ...] = ("blank",)
    watch: int = 8
    watch_steps: int = 0

    def __post_init__(self) -> None:
        leasts = {"limit": 0, "max_new_tokens": 1, "batch_size": 1, "gallery": 0, "watch": 0, "watch_steps": 0}
        for name, least in leasts.items():
            if getattr(self, name) < least:
                raise UserError(f"config.evaluation.{name}: must be at least {least}, got {getattr(self, name)}")
        if len(set(self.controls)) != len(self.controls):
            raise UserError(f"config.evaluation.controls: each at most once, got {', '.join(self.controls)}")


@config_class
class Runtime:
    """What may differ from one start of a run to the next: of the numbers it changes the order of sums at most.

    Attributes:
      mesh: how devices are laid out.
      cpu_devices: as how many devices JAX sees this machine's CPU; 0 leaves it to JAX (one). Small models leave cores
        idle in operations that XLA runs on one thread; two devices run two of them at a time.
      workers: Grain worker processes; 0 prepares batches in threads.
      log_seconds, checkpoint_seconds: how often a line is printed and a checkpoint written.
      keep_checkpoints: how many of the newest are kept; the ends of stages stay always.
    """

    mesh: MeshConfig = MeshConfig()
    cpu_devices: int = 0
    workers: int = 0
    log_seconds: float = 10.0
    checkpoint_seconds: float = 60.0
    keep_checkpoints: int = 2

    def __post_init__(self) -> None:
        for name, least in {"keep_checkpoints": 1, "cpu_devices": 0, "workers": 0}.items():
            if getattr(self, name) < least:
                raise UserError(f"config.runtime.{name}: must be at least {least}, got {getattr(self, name)}")


@config_class
class Recipe:
    """The whole road of one run.

    Attributes:
      name: shown in logs and reports.
      seed: of initial values, data order, drop path and everything else that is drawn.
      system: the model that comes out, its image layout and chat template; what `start` holds when None.
      start: weights to begin with; fresh ones when None.
      teacher: a larger encoder for distillation, or None.
      tokenizer_size: words, special tokens included, of the byte-level BPE that is trained on the training text where
        `start` brings no tokenizer.
      data: where conversations come from.
      stages: run in order.
      max_bad: share of the records that may be bad (missing pictures, broken lines, ...; `quarantine.jsonl` lists them)
        before the run ends.
      evaluation: what is measured at the end.
      compute: dtype, rematerialisation and the like of the student and teacher.
      runtime: what may change from one start to the next.
    """

    name: str
    system: System | None
    data: Data
    stages: tuple[Stage, ...]
    seed: int = 0
    start: Start | None = None
    teacher: TeacherConfig | None = None
    tokenizer_size: int = 1024
    max_bad: float = 0.01
    evaluation: EvaluationConfig = EvaluationConfig()
    compute: Compute = Compute()
    runtime: Runtime = Runtime()

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise UserError(f"config.seed: must be at least 0, got {self.seed}")
        if not 0 <= self.max_bad <= 1:
            raise UserError(f"config.max_bad: must be a share from 0 to 1, got {self.max_bad}")
        names = [stage.name for stage in self.stages]
        if len(set(names)) != len(names):
            raise UserError(f"config.stages: names must differ, got {', '.join(names)}")
        for i, stage in enumerate(self.stages):
            if "teacher" in stage.objective.parts and self.teacher is None:
                raise UserError(f"config.stages[{i}].objective needs config.teacher")
        if self.system is None and self.start is None:
            raise UserError("config.system: needed where config.start names no folder to take it from")
        if self.system is not None:
            self._check_system(self.system)

    def _check_system(self, system: System) -> None:
        vision = system.model.vision
        if self.teacher is not None:
            for name in ("image_size", "patch_size"):  # both see the same batch
                ours, its = getattr(vision, name), getattr(self.teacher.vision, name)
                if ours != its:
                    raise UserError(f"config.teacher.vision.{name} is {its}, config.system.model.vision.{name} {ours}")
        if self.stages and self.stages[-1].image_size not in (None, vision.image_size):
            raise UserError(
                f"config.stages[{len(self.stages) - 1}].image_size: the last stage must have the system's own, "
                f"{vision.image_size}, got {self.stages[-1].image_size}"
            )
        for i, stage in enumerate(self.stages):
            try:
                self.system_in(stage)
            except UserError as error:
                raise UserError(f"config.stages[{i}]: {error}") from None
            longest = system.model.decoder.context
            if (stage.data.tokens or 0) > longest:
                raise UserError(
                    f"config.stages[{i}].data.tokens is {stage.data.tokens}, more than the decoder's context of "
                    f"{longest} (config.system.model.decoder.max_tokens)"
                )

    def system_in(self, stage: Stage) -> System:
        """The system as it is while a stage trains, which may show it images at another size or in another prompt.

        Raises:
          UserError: naming the field of the stage that does not fit.
        """
        assert self.system is not None, "the recipe's system was not taken from its start"
        system = self.system if stage.image_size is None else self.system.resized(stage.image_size)
        if stage.template is None:
            return system
        return dataclasses.replace(system, template=stage.template, system_prompt=None)  # which is of its own format

    @property
    def models(self) -> Models:
        """The models that objectives work on, for the system's own size of tiles."""
        assert self.system is not None, "the recipe's system was not taken from its start"
        return Models(self.system.model, self.teacher, self.compute)

    def models_in(self, stage: Stage) -> Models:
        """The models that a stage's objective works on: those of the stage's size of tiles."""
        teacher = self.teacher
        if teacher is not None and stage.image_size is not None:
            teacher = dataclasses.replace(teacher, vision=teacher.vision.resized(stage.image_size))
        return dataclasses.replace(self.models, student=self.system_in(stage).model, teacher=teacher)


def recipe_config(**fields: Any) -> Any:
    """What a config file's `get_config` returns: a ConfigDict of the recipe in which every field can be overridden."""
    return complete(Recipe, fields)


MAY_CHANGE = (
    "config.runtime.",
    "config.max_bad",
    "config.evaluation.batch_size",
    "config.evaluation.controls",
    "config.evaluation.watch",
    "config.data.directory",
    "config.data.name",
    "config.data.data_dir",
    "config.data.train",
    "config.data.validation",
    "config.data.test",
    "config.start.",
)
"""Beginnings of the paths of fields that may differ when a run is continued."""
