"""What training leaves in its workdir, and a model in the same form: layout `orbax`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from vlm_jax import checkpoints
from vlm_jax.config import build, to_plain
from vlm_jax.convert.fields import CONFIG
from vlm_jax.convert.folders import Opened, open_folder, read_system, select_parts
from vlm_jax.convert.safetensors_folder import DTYPES
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.errors import UserError
from vlm_jax.files import new_folder, read_json, write_json
from vlm_jax.models.vlm import PARTS
from vlm_jax.system import System

CHECKPOINTS, TOKENIZER, EXPORT = "checkpoints", "tokenizer", "export"
"""Folders of a workdir."""


def is_workdir(folder: Path) -> bool:
    """Whether `folder` is a training workdir (rather than a model folder)."""
    return (folder / CONFIG).is_file() and "system" in read_json(folder / CONFIG)


def read_workdir(folder: str | Path, step: int | None = None) -> Opened:
    """Reads what training left in its workdir.

    Args:
      folder: the workdir.
      step: number of the checkpoint; the newest when None.

    Returns:
      As `Opened` elsewhere; of a stage with a size of tiles of its own, the system has that size.

    Raises:
      UserError: a file is missing, there is no such checkpoint, or it does not fit the workdir's config.
    """
    folder = Path(folder)
    params, _ = checkpoints.read_params(folder / CHECKPOINTS, step, parts=PARTS)
    system = _as_trained(_read_system(folder), read_json(folder / CONFIG), params)
    return Opened(select_parts(params, system.model, str(folder)), system, Tokenizer.load(folder / TOKENIZER))


def _read_system(folder: Path) -> System:
    config = read_json(folder / CONFIG)
    if "system" not in config:
        raise UserError(f"{folder / CONFIG}: not the config of a training run: it has no 'system'")
    return build(System, config["system"], name=f"{folder / CONFIG}: config.system")


def _as_trained(system: System, config: Mapping[str, Any], params: Mapping[str, Any]) -> System:
    """The system with the size of tiles that the table of positions is for: its own, or that of one of the stages."""
    positions = params.get("vision", {}).get("position_embedding")
    if positions is None:
        return system
    sides = {side for stage in config.get("stages", ()) if (side := stage.get("image_size"))}
    for known in (system, *(system.resized(side) for side in sorted(sides))):
        if known.model.vision.tokens == len(positions):
            return known
    return system


def write_workdir(
    folder: str | Path, params: Mapping[str, Any], system: System, tokenizer: Tokenizer, dtype: str = "float32"
) -> None:
    """Writes a model as a workdir with one checkpoint, number 0, and nothing else of a run; all of it or nothing.

    Args:
      folder, params, system, tokenizer, dtype: as in `folders.write_folder`; all parameters are held in memory.

    Raises:
      UserError: the folder exists, parameters are missing, or the disk is full.
    """
    folder = Path(folder)
    with new_folder(folder) as aside:
        chosen = select_parts(params, system.model, str(folder))
        arrays = jax.tree.map(lambda leaf: np.asarray(leaf).astype(DTYPES[dtype], copy=False), chosen)
        checkpoints.write_params(aside / CHECKPOINTS, 0, arrays)
        tokenizer.save(aside / TOKENIZER, system.chat_template)
        write_json(aside / CONFIG, {"system": to_plain(system)})


def open_model(folder: str | Path, step: int | None = None) -> Opened:
    """Opens whatever holds a model: a training workdir, or a model folder in any layout; it finds out which.

    Args:
      folder: where the model lies. Of a workdir the newest checkpoint is taken, or `export/` when there is none.
      step: of a workdir, the number of a checkpoint.

    Raises:
      UserError: the folder does not exist, holds no model, or holds one that does not fit its config.
    """
    folder = _folder_of_a_model(folder)
    if not is_workdir(folder):
        if step is not None:
            raise UserError(f"{folder}: is not a training workdir, it has no checkpoint {step} to choose")
        return open_folder(folder)
    if checkpoints.complete(folder / CHECKPOINTS) or step is not None:
        return read_workdir(folder, step)
    if (folder / EXPORT).is_dir():
        return open_folder(folder / EXPORT)
    raise UserError(f"{folder}: the training in it has not saved a checkpoint yet")


def open_system(folder: str | Path) -> tuple[System, Tokenizer]:
    """What `open_model` opens without the parameters, which need not be there yet: all that preparing data takes.

    Raises:
      UserError: the folder does not exist, or is neither a workdir nor a model folder.
    """
    folder = _folder_of_a_model(folder)
    if is_workdir(folder):
        return _read_system(folder), Tokenizer.load(folder / TOKENIZER)
    return read_system(folder), Tokenizer.load(folder)


def _folder_of_a_model(folder: str | Path) -> Path:
    folder = Path(folder)
    if not folder.is_dir():
        raise UserError(f"{folder}: there is no such folder")
    if not (folder / CONFIG).is_file():
        raise UserError(f"{folder}: not a model: it has no {CONFIG}")
    return folder
