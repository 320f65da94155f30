"""Pictures of a page: encoded anew, so that nothing but pixels of an untrusted file reaches it."""

from __future__ import annotations

from typing import Any

from PIL import Image

from vlm_jax.data.box_check import boxes_in
from vlm_jax.data.conversation import Conversation
from vlm_jax.data.images import decode_image
from vlm_jax.data.inline import data_uri, shrunk
from vlm_jax.data.prepare import Example, Preparer

MAX_SIDE, MAX_TILE_SIDE = 720, 112
"""Larger pictures and tiles are embedded at this longer side, in pixels."""

_SHOWN = 270  # CSS pixels, of the longer side
_MAX_BOXES = 40


def pictures_of(conversation: Conversation, example: Example, preparer: Preparer) -> list[dict[str, Any]]:
    """Every image of a conversation as the page shows it: whole, and as the tiles that the model gets."""
    layout = preparer.tiling(conversation)
    found = []
    for number, data in enumerate(conversation.images):
        image = decode_image(data, f"image {number}", preparer.max_megapixels)
        across, down = layout.grid(*image.size)
        arrays = layout.pictures(example.patches[example.tile_image == number], image.size, preparer.patch_size)
        tiles = [data_uri(shrunk(Image.fromarray(tile), MAX_TILE_SIDE)) for tile in arrays]
        boxes = _boxes(conversation) if len(conversation.images) == 1 else []
        factor = int(min(_SHOWN / image.width, _SHOWN / image.height))
        found.append(
            {
                "source": data_uri(shrunk(image, MAX_SIDE)),
                "width": image.width,
                "height": image.height,
                # A whole factor keeps every pixel of a small picture a sharp square.
                "shown_width": image.width * factor if factor >= 2 else _shown_width(*image.size),
                "crisp": factor >= 2,
                "across": across,
                "down": down,
                "tiles": tiles[: across * down],
                "thumbnail": tiles[across * down] if len(tiles) > across * down else None,
                "boxes": boxes,
            }
        )
    return found


def _shown_width(width: int, height: int) -> int:
    return max(4, round(_SHOWN * width / max(width, height)))


def _boxes(conversation: Conversation) -> list[dict[str, float]]:
    """Rectangles in thousandths of the picture."""
    found = [box for turn in conversation.turns for tag, box in boxes_in(turn.text) if tag == "box" and len(box) == 4]
    corners = [(min(a, c), min(b, d), max(a, c), max(b, d)) for a, b, c, d in found[:_MAX_BOXES]]
    return [{"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1} for x1, y1, x2, y2 in corners]
