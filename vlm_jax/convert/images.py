"""What a folder's `preprocessor_config.json` says of pixels: side of an image, mean and standard deviation."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from vlm_jax.convert.fields import Fields


def read_statistics(images: Mapping[str, Any], where: str) -> dict[str, tuple[float, ...]]:
    """`mean` and `std` of a `VisionConfig`, as far as the settings of an image processor say them.

    Args:
      images: contents of `preprocessor_config.json`; may be empty.
      where: what to call the file in errors.

    Raises:
      UserError: pixels are not brought to 0..1 first, or there are not three numbers.
    """
    fields = Fields(images, where)
    fields.need("do_rescale", True, True)
    if not math.isclose(fields.get("rescale_factor", 1 / 255), 1 / 255, rel_tol=1e-6):
        fields.wrong("rescale_factor", f"must be 1/255, is {images['rescale_factor']}")
    found = {}
    for name, plain in (("mean", 0.0), ("std", 1.0)):
        value = images.get(f"image_{name}") if fields.get("do_normalize", True) else plain
        if value is None:
            continue
        values = list(value) if isinstance(value, list | tuple) else [value] * 3
        if len(values) != 3 or not all(isinstance(v, int | float) for v in values):
            fields.wrong(f"image_{name}", f"must be three numbers, is {value!r}")
        found[name] = tuple(values)
    fields.finish()
    return {name: tuple(map(float, values)) for name, values in found.items()}


def read_size(images: Mapping[str, Any], where: str) -> int | None:
    """Side in pixels of the square images that the processor makes; None where it does not say.

    Raises:
      UserError: they are not square.
    """
    fields = Fields(images, where)
    cropped = fields.get("do_center_crop", "crop_size" in images) and fields.get("crop_size") is not None
    name = "crop_size" if cropped else "size"
    value = fields.get(name)
    if isinstance(value, Mapping):
        if not {"height", "width"} <= value.keys():
            return None
        fields = Fields({name: [value["height"], value["width"]]}, where)
    elif value is None:
        return None
    side = fields.square(name)
    fields.finish()
    return side
