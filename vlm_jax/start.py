"""What a run starts from: released or trained weights, and the system they belong to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vlm_jax.checkpoints import complete
from vlm_jax.config import build
from vlm_jax.convert.assemble import TRAINING, assemble, assemble_system, differences
from vlm_jax.convert.folders import Opened
from vlm_jax.convert.workdirs import open_model
from vlm_jax.errors import UserError
from vlm_jax.files import read_json
from vlm_jax.models.vision_transformer import VisionConfig
from vlm_jax.system import System
from vlm_jax.training.recipe import Recipe, Start
from vlm_jax.training.workdir import Workdir


def open_start(recipe: Recipe, workdir: Workdir) -> tuple[Recipe, Opened | None]:
    """Opens the folders that a recipe starts from, and completes the recipe with what they say.

    Returns:
      The recipe with its system, and what was opened: None where there is nothing to start from, or a checkpoint in the
      workdir to continue from.

    Raises:
      UserError: a folder cannot be read, or is not of the system that the recipe describes.
    """
    if recipe.start is None:
        return recipe, None
    if complete(workdir.checkpoints):
        return (recipe if recipe.system is not None else _with_system(recipe, _stored_system(workdir))), None
    system = recipe.system
    recipe.start.check(tower=system is None or isinstance(system.model.vision, VisionConfig))
    opened = _open(recipe, recipe.start)
    if system is None:
        return _with_system(recipe, opened.system), opened
    told = differences(system.model, opened.system.model, "", [f"vision.{name}" for name in TRAINING])
    if told:
        raise UserError(
            f"{recipe.start.model} is another model than config.system.model: {'; '.join(told)}. "
            "a recipe whose system is None takes the folder's"
        )
    return recipe, opened


def _open(recipe: Recipe, start: Start) -> Opened:
    """What the folders hold; of a tower's and a language model's, the recipe's system or, without one, an InternVL."""
    if start.model:
        return open_model(start.model)
    if recipe.system is None:
        return assemble(start.vision, start.decoder, seed=recipe.seed)
    stages = [recipe.system_in(stage) for stage in recipe.stages]
    return assemble_system(
        recipe.system,
        start.vision,
        start.decoder,
        templates=[stage.chat_template for stage in stages],
        image_size=stages[0].model.vision.image_size if stages else None,
        seed=recipe.seed,
    )


def _with_system(recipe: Recipe, system: System) -> Recipe:
    try:
        return dataclasses.replace(recipe, system=system)
    except UserError as error:
        raise UserError(f"{error} (config.system is that of config.start)") from None


def _stored_system(workdir: Workdir) -> System:
    config: dict[str, Any] = read_json(Path(workdir.config))
    return build(System, config["system"], name=f"{workdir.config}: config.system")
