"""Vision towers on their own: folders of any family, in and out."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlm_jax import globs
from vlm_jax.convert import table
from vlm_jax.convert.clip import CLIP
from vlm_jax.convert.clip_to_internvit import clip_to_internvit
from vlm_jax.convert.dinov2 import DINOV2
from vlm_jax.convert.fields import CONFIG, IMAGES
from vlm_jax.convert.folders import select, shapes_of
from vlm_jax.convert.images import read_size, read_statistics
from vlm_jax.convert.internvit import INTERNVIT
from vlm_jax.convert.internvl_hf import INTERNVL_VISION
from vlm_jax.convert.lazy import materialise
from vlm_jax.convert.processors import read_settings
from vlm_jax.convert.safetensors_folder import SHARD_BYTES, open_params, write_params
from vlm_jax.convert.siglip import SIGLIP
from vlm_jax.convert.vision_family import VisionFamily
from vlm_jax.convert.workdirs import open_model
from vlm_jax.errors import UserError
from vlm_jax.files import new_folder, read_json, refuse_links_out, write_json
from vlm_jax.models.positions import resize_positions
from vlm_jax.models.vision_transformer import VisionConfig, init_tower

FAMILIES: tuple[VisionFamily, ...] = (INTERNVIT, INTERNVL_VISION, CLIP, SIGLIP, DINOV2)

_POSITIONS = "vision/position_embedding"


def open_tower(folder: str | Path, image_size: int | None = None) -> tuple[dict[str, Any], VisionConfig]:
    """Opens a vision tower; text towers, projections and pooling heads stored beside it are passed over.

    All of the tower is held, a norm that only pooled features pass too. What is handed on is what the release calls its
    last hidden states; `dataclasses.replace(vision, feature_layer=-2)` takes others from the same parameters.

    Args:
      folder: `config.json`, safetensors, and possibly `preprocessor_config.json`, whose mean, standard deviation and
        size go before those of the family and of `config.json` (the size not with DINOv2, whose releases have an image
        processor for smaller images than their table of positions).
      image_size: side in pixels of the images that the tower is to see; it goes before what the folder says.
        Positions are interpolated where the grid of patches becomes another (`resize_positions`).

    Returns:
      {"vision": parameters} as nested dicts of arrays that are read when they are looked at (`LazyArray`), and the
      tower's config.

    Raises:
      UserError: a file is missing or damaged, the model is of no family, or the weights do not fit: all problems of
        the weights at once.
    """
    folder = Path(folder)
    if folder.is_dir():
        refuse_links_out(folder)
    config = read_json(folder / CONFIG)
    family = family_of(config, str(folder / CONFIG))
    stored = family.read_config(config, str(folder / CONFIG))
    params = globs.flatten(open_params(folder, family.rules, tower_shapes(stored), family.rename, family.leaves_out))
    images, where = read_settings(folder, required=False), str(folder / IMAGES)
    processed = read_size(images, where) if family.sized_by_processor else None
    size = image_size or processed or stored.image_size
    vision = dataclasses.replace(stored, image_size=size, **read_statistics(images, where))
    positions = np.asarray(params[_POSITIONS])
    params[_POSITIONS] = resize_positions(positions, stored.grid, vision.grid, vision.class_token)
    return globs.unflatten(params), vision


def read_tower(folder: str | Path, image_size: int | None = None) -> tuple[dict[str, Any], VisionConfig]:
    """`open_tower` with all parameters read into memory, as NumPy arrays in the dtype they are stored in."""
    params, vision = open_tower(folder, image_size)
    return materialise(params), vision


def open_internvit(
    folder: str | Path, step: int | None = None, image_size: int | None = None
) -> tuple[dict[str, Any], VisionConfig]:
    """The encoder of a whole model, or a tower on its own, as an InternViT; a CLIP becomes one (`clip_to_internvit`).

    Args:
      folder: training workdir, model folder, or tower (see `open_tower`).
      step: of a workdir, the number of a checkpoint.
      image_size: of a tower, as in `open_tower`.

    Raises:
      UserError: as `open_model` and `open_tower`; the tower is neither InternViT nor CLIP.
    """
    config = read_json(Path(folder) / CONFIG) if (Path(folder) / CONFIG).is_file() else {}
    if not any(config.get("model_type") in family.model_types for family in FAMILIES):
        if image_size is not None:
            raise UserError(f"{folder}: the image size of a whole model cannot be changed")
        opened = open_model(folder, step)
        return {"vision": opened.params["vision"]}, opened.system.model.vision
    if step is not None:
        raise UserError(f"{folder}: is not a training workdir, it has no checkpoint {step} to choose")
    params, vision = open_tower(folder, image_size)
    if config["model_type"] in CLIP.model_types:
        return clip_to_internvit(materialise(params), vision)
    return params, vision


def family_of(config: Mapping[str, Any], where: str) -> VisionFamily:
    """The family of a folder with this `config.json`.

    Raises:
      UserError: there is none; `where` begins the message.
    """
    known = {model_type: family for family in FAMILIES for model_type in family.model_types}
    if config.get("model_type") not in known:
        raise UserError(f"{where}: model_type is {config.get('model_type')!r}; vision towers: {', '.join(known)}")
    return known[config["model_type"]]


def tower_shapes(vision: VisionConfig) -> dict[str, table.Shape]:
    """{path: shape} of every parameter of a tower, paths beginning with `vision/`, without making any."""
    return shapes_of(lambda key: {"vision": init_tower(vision, key)})


def write_tower(
    folder: str | Path,
    params: Mapping[str, Any],
    vision: VisionConfig,
    dtype: str = "float32",
    *,
    family: VisionFamily = INTERNVIT,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
    progress: Callable[[], None] = lambda: None,
) -> None:
    """Writes a tower as a folder of its own, in the layout of its family: all of it or nothing.

    `read_tower` reads the folder, and `transformers` does; an InternViT's is laid out as OpenGVLab's releases, for
    InternVL's own code, which is not written (its classes are named in `auto_map`, as there). What a family's folder
    cannot say is not in it: drop path, and which hidden state is handed on.

    Args:
      folder: written aside and renamed at the end.
      params: nested dict of arrays with the part `vision`; other parts are left out.
      vision: what they are the parameters of.
      dtype: of the written weights, a key of `DTYPES`.
      family: one of `FAMILIES`.
      overwrite: replace what is there.
      shard_bytes: largest size of a weight file.
      progress: called for every tensor.

    Raises:
      UserError: the folder exists, the tower is none of the family, parameters do not fit the config, or the disk is
        full.
    """
    folder = Path(folder)
    config = family.write_config(vision, dtype)
    chosen = select(params, tower_shapes(vision), str(folder))
    with new_folder(folder, overwrite=overwrite) as aside:
        write_params(aside, table.prefixed(family.own_prefix, family.rules), chosen, dtype, shard_bytes, progress)
        write_json(aside / CONFIG, config)
        write_json(aside / IMAGES, family.write_processor(vision))
