"""What a run starts from: released or trained weights, and the system they belong to."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

from vlm_jax.checkpoints import complete
from vlm_jax.config import build, flatten, to_plain
from vlm_jax.convert.assemble import assemble
from vlm_jax.convert.folders import Opened
from vlm_jax.convert.workdirs import open_model
from vlm_jax.errors import UserError
from vlm_jax.files import read_json
from vlm_jax.system import System
from vlm_jax.training.recipe import Recipe, Start
from vlm_jax.training.workdir import Workdir

_TRAINING = ("vision.drop_path", "vision.layer_scale")
"""Fields of a model that matter to training or to fresh weights alone."""


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
    recipe.start.check()
    opened = _open(recipe.start, recipe.seed)
    if recipe.system is None:
        return _with_system(recipe, opened.system), opened
    differences = _differences(recipe.system, opened.system)
    if differences:
        folder = recipe.start.model or f"{recipe.start.vision} with {recipe.start.decoder}"
        raise UserError(
            f"{folder} is another model than config.system.model: {'; '.join(differences)}. "
            "a recipe whose system is None takes the folder's"
        )
    return recipe, opened


def _open(start: Start, seed: int) -> Opened:
    return open_model(start.model) if start.model else assemble(start.vision, start.decoder, seed=seed)


def _with_system(recipe: Recipe, system: System) -> Recipe:
    try:
        return dataclasses.replace(recipe, system=system)
    except UserError as error:
        raise UserError(f"{error} (config.system is that of config.start)") from None


def _stored_system(workdir: Workdir) -> System:
    config: dict[str, Any] = read_json(Path(workdir.config))
    return build(System, config["system"], name=f"{workdir.config}: config.system")


def _differences(ours: System, theirs: System) -> list[str]:
    """Fields of the model that differ, as `vision.depth is 24, the folder's 2`."""
    a, b = (flatten(to_plain(system.model), "") for system in (ours, theirs))
    names = sorted(name for name in a.keys() | b.keys() if name.removeprefix(".") not in _TRAINING)
    return [
        f"{name.removeprefix('.')} is {a.get(name)!r}, the folder's {b.get(name)!r}"
        for name in names
        if a.get(name) != b.get(name)
    ]
