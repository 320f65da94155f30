"""COCO's annotation files as contexts: the captions of a picture, and its objects with their boxes.

COCO's boxes are left, top, width and height in pixels (cocodataset.org, "Data format"); LLaVA gave its writer captions
and boxes of these files (arXiv 2304.08485, section 3).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

from vlm_jax.data.recipes.contexts import Context, NamedBox
from vlm_jax.data.recipes.fields import get, objects
from vlm_jax.errors import UserError

_DIGITS = 3  # of a share of a side, as LLaVA's prompts have them


def contexts_of_coco(
    captions: Mapping[str, Any] | None, instances: Mapping[str, Any] | None, *, crowds: bool = False
) -> list[Context]:
    """Contexts of the pictures in COCO's files, by rising id; pictures without any annotation are left out.

    Args:
      captions: content of a file such as `captions_train2017.json`, or None.
      instances: of one such as `instances_train2017.json`, or None.
      crowds: boxes around crowds of things (`iscrowd`) count too.

    Raises:
      UserError: a field is missing or of a wrong type, or an annotation names a picture or category that is not there.
    """
    files = [(name, content) for name, content in (("captions", captions), ("instances", instances)) if content]
    images: dict[int, Mapping[str, Any]] = {}
    for name, content in files:
        for place, image in objects(content, "images", name):
            images.setdefault(get(image, "id", int, place), image)
    texts = _captions(captions, images) if captions else {}
    boxes = _boxes(instances, images, crowds) if instances else {}
    return [
        Context(
            str(id_),
            get(images[id_], "file_name", str, f"image {id_}"),
            tuple(texts.get(id_, ())),
            tuple(boxes.get(id_, ())),
        )
        for id_ in sorted(images)
        if id_ in texts or id_ in boxes
    ]


def _captions(content: Mapping[str, Any], images: Mapping[int, Any]) -> dict[int, list[str]]:
    """Captions by picture, in the order of their ids."""
    found: defaultdict[int, list[tuple[int, str]]] = defaultdict(list)
    for place, annotation in objects(content, "annotations", "captions"):
        caption = " ".join(get(annotation, "caption", str, place).split())
        if caption:
            found[_image(annotation, images, place)].append((get(annotation, "id", int, place), caption))
    return {id_: [caption for _, caption in sorted(some)] for id_, some in found.items()}


def _boxes(content: Mapping[str, Any], images: Mapping[int, Any], crowds: bool) -> dict[int, list[NamedBox]]:
    """Boxes by picture, in the order of their ids."""
    names = {
        get(category, "id", int, place): get(category, "name", str, place)
        for place, category in objects(content, "categories", "instances")
    }
    found: defaultdict[int, list[tuple[int, NamedBox]]] = defaultdict(list)
    for place, annotation in objects(content, "annotations", "instances"):
        if annotation.get("iscrowd") and not crowds:
            continue
        image = _image(annotation, images, place)
        category = get(annotation, "category_id", int, place)
        if category not in names:
            raise UserError(f"{place}.category_id: there is no category {category}")
        size = [get(images[image], side, int, f"image {image}") for side in ("width", "height")]
        box = _shares(get(annotation, "bbox", list, place), size, place)
        found[image].append((get(annotation, "id", int, place), NamedBox(names[category], box)))
    return {id_: [box for _, box in sorted(some)] for id_, some in found.items()}


def _shares(bbox: list[Any], size: list[int], place: str) -> tuple[float, float, float, float]:
    """Left, top, right, bottom as shares; what rounding moved over the border is put on it."""
    if len(bbox) != 4 or not all(isinstance(side, int | float) for side in bbox) or min(size) < 1:
        raise UserError(f"{place}.bbox: must be left, top, width and height in pixels, got {bbox}")
    left, top, width, height = bbox
    if not (
        left >= -1 and top >= -1 and left + width <= size[0] + 1 and top + height <= size[1] + 1 and min(bbox[2:]) >= 0
    ):
        raise UserError(f"{place}.bbox: {bbox} lies outside of a picture of {size[0]} x {size[1]} pixels")
    corners = (left / size[0], top / size[1], (left + width) / size[0], (top + height) / size[1])
    x1, y1, x2, y2 = (round(min(max(corner, 0.0), 1.0), _DIGITS) for corner in corners)
    return x1, y1, x2, y2


def _image(annotation: Mapping[str, Any], images: Mapping[int, Any], place: str) -> int:
    id_ = get(annotation, "image_id", int, place)
    if id_ not in images:
        raise UserError(f"{place}.image_id: there is no image {id_}")
    return id_
