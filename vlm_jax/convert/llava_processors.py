"""Settings of LLaVA's and LLaVA-NeXT's processors in `transformers`, and the image layouts that they are.

Source: `models/{llava,llava_next}/{image_processing,processing}_*.py` and `models/clip/image_processing_clip.py`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from vlm_jax.convert.fields import IMAGES, Fields
from vlm_jax.convert.processors import PROCESSOR
from vlm_jax.convert.vision_family import write_processor
from vlm_jax.data.layouts.any_res import AnyRes
from vlm_jax.data.layouts.single import Single
from vlm_jax.errors import UserError
from vlm_jax.models.vision_transformer import VisionConfig
from vlm_jax.system import System

STRATEGIES = {True: "default", False: "full"}
"""`vision_feature_select_strategy` of towers with a class token, which is dropped, and without."""

PINPOINTS = "image_grid_pinpoints"
RELEASED = [[336, 672], [672, 336], [672, 672], [1008, 336], [336, 1008]]
"""Height and width in pixels of LLaVA-NeXT's grids where a folder does not say them."""


def read_single(images: Mapping[str, Any], vision: VisionConfig, where: str) -> Single:
    """The layout that the settings of an image processor describe: padded, cropped, or stretched to a square.

    Args:
      images: the settings.
      vision: the tower, whose mean is the colour of padding.
      where: what to call the settings in errors.

    Raises:
      UserError: naming every setting by which pixels would come out otherwise than they do here.
    """
    side = vision.image_size
    fields = Fields(images, where)
    _need_bicubic(fields)
    square, size = {"height": side, "width": side}, fields.get("size")
    cropped = fields.get("do_center_crop", images.get("crop_size") is not None)
    if cropped and fields.get("crop_size") != side:
        fields.need("crop_size", square, square)
    padded, stretched = fields.get("do_pad", False), size == square
    shortest = size in (side, {"shortest_edge": side})  # a number alone is what it was called before 2023
    if not (stretched or (shortest and (padded or cropped))):
        fields.wrong("size", f"must be {square if not cropped else {'shortest_edge': side}}, is {size!r}")
    fields.finish()
    if padded:
        return Single(tile_size=side, fit="pad", color=mean_color(vision))
    return Single(tile_size=side, fit="stretch" if stretched else "crop")


def mean_color(vision: VisionConfig) -> tuple[int, ...]:
    """The mean of the pixels, rounded down (`expand2square` in `llava/mm_utils.py`)."""
    return tuple(int(255 * value) for value in vision.mean)


_FITS: Mapping[str, tuple[str, bool, Mapping[str, bool]]] = {
    "pad": ("LlavaImageProcessor", True, {"do_pad": True}),
    "crop": ("CLIPImageProcessor", True, {}),
    "stretch": ("SiglipImageProcessor", False, {}),
}
"""For each `Single.fit` an image processor, whether it resizes the shorter side and crops, and its other switches."""


def write_single(system: System) -> dict[str, dict[str, Any]]:
    """{file: settings} of the joint processor and the image processor of LLaVA-1.5.

    Raises:
      UserError: the padding has another colour than the mean.
    """
    layout, vision = system.layout, system.model.vision
    if layout.fit == "pad" and layout.color != mean_color(vision):
        raise UserError(
            f"layout.color must be the mean of the pixels, {mean_color(vision)}, is {layout.color}: transformers pads "
            "with no other"
        )
    kind, crop, switches = _FITS[layout.fit]
    return _joint("LlavaProcessor", system, {**write_processor(kind, vision, crop=crop), **switches})


def read_any_res(images: Mapping[str, Any], pinpoints: Any, vision: VisionConfig, where: str) -> AnyRes:
    """The layout that the settings of LLaVA-NeXT's image processor describe.

    Args:
      images: the settings.
      pinpoints: the model's own grids, which must be the processor's.
      vision: the tower.
      where: what to call the settings in errors.

    Raises:
      UserError: as `read_single`; the grids are no multiples of the tower's images.
    """
    side = vision.image_size
    fields = Fields(images, where)
    _need_bicubic(fields)
    square = {"height": side, "width": side}
    if fields.get("size") not in (side, square, {"shortest_edge": side}):
        fields.wrong("size", f"must be {square}, is {fields.get('size')!r}")
    if fields.get("do_center_crop", True) and fields.get("crop_size") != side:
        fields.need("crop_size", square, square)
    fields.need(PINPOINTS, pinpoints, RELEASED)
    pairs = fields.get(PINPOINTS, RELEASED)
    if any(length % side for pair in pairs for length in pair):
        fields.wrong(PINPOINTS, f"must be multiples of the tower's {side} pixels, are {pairs}")
    fields.finish()
    return AnyRes(tile_size=side, grids=tuple((width // side, height // side) for height, width in pairs))


def write_any_res(system: System) -> dict[str, dict[str, Any]]:
    """{file: settings} of the joint processor and the image processor of LLaVA-NeXT."""
    images = write_processor("LlavaNextImageProcessor", system.model.vision, crop=True)
    images |= {"do_pad": True, PINPOINTS: write_pinpoints(system.layout)}
    return _joint("LlavaNextProcessor", system, images)


def write_pinpoints(layout: AnyRes) -> list[list[int]]:
    """Height and width in pixels of the grids."""
    return [[rows * layout.tile_size, columns * layout.tile_size] for columns, rows in layout.grids]


def _need_bicubic(fields: Fields) -> None:
    for name in ("do_resize", "do_rescale"):
        fields.need(name, True, True)
    fields.need("resample", 3, 3)


def _joint(kind: str, system: System, images: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """{file: settings} of a joint processor of any kind of LLaVA, and of its image processor."""
    vision = system.model.vision
    joint = {
        "patch_size": vision.patch_size,
        "vision_feature_select_strategy": STRATEGIES[vision.class_token],
        "num_additional_image_tokens": vision.first_patch,
        "image_token": system.chat_template.image_context,
    }
    return {
        IMAGES: {"processor_class": kind, **images, "do_convert_rgb": True},
        PROCESSOR: {"processor_class": kind, **joint},
    }
