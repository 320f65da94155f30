"""Settings of the image, video and joint processor of `transformers`: written for all its versions, read from all.

Up to 4.57 `save_pretrained` of a processor writes `preprocessor_config.json`, `video_preprocessor_config.json` and
`processor_config.json`; from 5.0 on the first two are entries of the third. What is written here is the first form: all
versions read it, and 4.52 does not find image settings in the second.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_jax.convert.fields import IMAGES, Fields
from vlm_jax.data.layouts.closest_aspect import ClosestAspect
from vlm_jax.errors import UserError
from vlm_jax.files import read_json
from vlm_jax.system import System

PROCESSOR, VIDEOS = "processor_config.json", "video_preprocessor_config.json"

SETTINGS = f"settings of the image processor ({IMAGES} or {PROCESSOR})"
"""What to call them in errors."""

_NESTED = "image_processor"
_BICUBIC = 3


def processor_files(system: System) -> dict[str, dict[str, Any]]:
    """{file: settings}; every value is written, because the classes' defaults are other models'."""
    size = {"height": system.layout.tile_size, "width": system.layout.tile_size}
    common = {
        "processor_class": "InternVLProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": size,
        "resample": _BICUBIC,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(system.model.vision.mean),
        "image_std": list(system.model.vision.std),
    }
    tiling = {
        "crop_to_patches": True,
        "min_patches": system.layout.min_tiles,
        "max_patches": system.layout.max_tiles,
    }
    return {
        IMAGES: {"image_processor_type": "GotOcr2ImageProcessorFast", **common, **tiling},
        VIDEOS: {"video_processor_type": "InternVLVideoProcessor", **common},
        PROCESSOR: {
            "processor_class": "InternVLProcessor",
            "image_seq_length": system.model.tokens_per_tile,
        },
    }


def read_settings(folder: Path, required: bool = True) -> dict[str, Any]:
    """Settings of the image processor: those inside `processor_config.json`, or else `preprocessor_config.json`.

    `transformers` looks in the same order.

    Raises:
      UserError: a file is not JSON, or there are none and they are `required`.
    """
    if (folder / PROCESSOR).is_file():
        nested = read_json(folder / PROCESSOR).get(_NESTED)
        if isinstance(nested, dict):
            return nested
    if (folder / IMAGES).is_file():
        return read_json(folder / IMAGES)
    if not required:
        return {}
    raise UserError(f"{folder}: no settings of an image processor, neither in {IMAGES} nor in {PROCESSOR}")


def read_layout(settings: Mapping[str, Any], tile_size: int, where: str) -> ClosestAspect:
    """The layout that the settings of an image processor describe. (Mean and standard deviation: `read_statistics`.)

    Args:
      settings: what `read_settings` found; what is missing counts as InternVL's.
      tile_size: side of the vision encoder's images.
      where: what to call the settings in errors.

    Raises:
      UserError: naming every setting by which pixels would come out otherwise than they do here.
    """
    fields = Fields(settings, where)
    for name in ("do_resize", "do_rescale"):
        fields.need(name, True, True)
    fields.need("do_center_crop", False, False)
    fields.need("do_pad", False, False)
    fields.need("resample", _BICUBIC, _BICUBIC)
    size = {"height": tile_size, "width": tile_size}
    fields.need("size", size, size)
    fields.finish()
    # `crop_to_patches` is False in the released folders, and means nothing: `InternVLProcessor` passes True.
    return ClosestAspect(
        tile_size=tile_size, min_tiles=fields.get("min_patches", 1), max_tiles=fields.get("max_patches", 12)
    )
