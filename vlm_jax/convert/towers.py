"""Vision towers on their own: any family's folder in, an InternViT's folder out."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vlm_jax import globs
from vlm_jax.convert import table
from vlm_jax.convert.clip import CLIP
from vlm_jax.convert.fields import CONFIG, IMAGES
from vlm_jax.convert.folders import DTYPES, shapes_of
from vlm_jax.convert.images import read_size, read_statistics
from vlm_jax.convert.internvit import INTERNVIT, write_images, write_tower_config
from vlm_jax.convert.internvl_hf import INTERNVL_VISION
from vlm_jax.convert.lazy import materialise
from vlm_jax.convert.positions import resize_positions
from vlm_jax.convert.safetensors_folder import SHARD_BYTES, open_weights, write_weights
from vlm_jax.convert.siglip import SIGLIP
from vlm_jax.convert.vision_family import VisionFamily
from vlm_jax.errors import UserError
from vlm_jax.files import new_folder, read_json, refuse_links_out, write_json
from vlm_jax.models.vision_transformer import VisionConfig, init_tower

FAMILIES: tuple[VisionFamily, ...] = (INTERNVIT, INTERNVL_VISION, CLIP, SIGLIP)

_POSITIONS = "vision/position_embedding"


def open_tower(folder: str | Path, image_size: int | None = None) -> tuple[dict[str, Any], VisionConfig]:
    """Opens a vision tower; text towers, projections and pooling heads stored beside it are passed over.

    Args:
      folder: `config.json`, safetensors, and possibly `preprocessor_config.json`, whose mean, standard deviation and
        size go before those of the family and of `config.json`.
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
    params = _open_params(folder, family, stored)
    images, where = read_json(folder / IMAGES) if (folder / IMAGES).is_file() else {}, str(folder / IMAGES)
    size = image_size or read_size(images, where) or stored.image_size
    vision = dataclasses.replace(stored, image_size=size, **read_statistics(images, where))
    positions = np.asarray(params[_POSITIONS])
    params[_POSITIONS] = resize_positions(positions, stored.grid, vision.grid, vision.class_token)
    return globs.unflatten(params), vision


def read_tower(folder: str | Path, image_size: int | None = None) -> tuple[dict[str, Any], VisionConfig]:
    """`open_tower` with all parameters read into memory, as NumPy arrays in the dtype they are stored in."""
    params, vision = open_tower(folder, image_size)
    return materialise(params), vision


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
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes an InternViT as a folder of its own, in the layout of OpenGVLab's releases: all of it or nothing.

    The code of those releases is not written (its classes are named in `auto_map`, as there); `read_tower` and
    InternVL's own code read the folder.

    Args:
      folder: written aside and renamed at the end.
      params: nested dict of arrays with the part `vision`; other parts are left out.
      vision: what they are the parameters of.
      dtype: of the written weights, a key of `DTYPES`.
      overwrite: replace what is there.
      shard_bytes: largest size of a weight file.

    Raises:
      UserError: the folder exists, the tower is no InternViT, parameters do not fit the config, or the disk is full.
    """
    folder = Path(folder)
    if dtype not in DTYPES:
        raise UserError(f"dtype must be one of {', '.join(DTYPES)}, got '{dtype}'")
    config = write_tower_config(vision, dtype)
    shapes = tower_shapes(vision)
    flat = globs.flatten({"vision": params.get("vision", {})})
    found = {path: tuple(leaf.shape) for path, leaf in flat.items()}
    wrong = sorted(path for path in shapes.keys() | found.keys() if shapes.get(path) != found.get(path))
    if wrong:
        raise UserError(f"{folder}: the parameters do not fit the config: {', '.join(wrong)}")
    plan = table.plan(INTERNVIT.rules, shapes)
    sizes = {key: int(np.prod(stored.shape)) * DTYPES[dtype].itemsize for key, stored in plan.items()}
    tensors = ((key, tensor.astype(DTYPES[dtype], copy=False)) for key, tensor in table.write(plan, flat))
    with new_folder(folder, overwrite=overwrite) as aside:
        write_weights(aside, tensors, sizes, shard_bytes)
        write_json(aside / CONFIG, config)
        write_json(aside / IMAGES, write_images(vision))


def _open_params(folder: Path, family: VisionFamily, vision: VisionConfig) -> dict[str, Any]:
    plan = table.plan(family.rules, tower_shapes(vision))
    tensors = open_weights(folder, family.rename, family.leaves_out)
    table.check(plan, {key: tensor.shape for key, tensor in tensors.items()}, str(folder))
    return table.read(plan, tensors)
