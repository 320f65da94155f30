"""The gallery of the report: held-out pictures chosen at random, with the tiles, answers and boxes to draw on them."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from PIL import Image

from vlm_jax.data.boxes import Box, parse_boxes
from vlm_jax.data.images import decode_image
from vlm_jax.data.inline import data_uri, shrunk

Tiler = Callable[[Image.Image, int], Sequence[np.ndarray]]
"""An RGB image, images of its question -> its tiles as the model sees them, uint8 [height, width, 3] each, a thumbnail
last."""

MAX_SIDE, MAX_TILE_SIDE = 896, 96
"""Larger pictures and tiles are embedded at this longer side (pixels), so that the page stays small."""

SHOWN_WIDTH, SHOWN_HEIGHT = 330, 340
"""The space of a picture in its card, in CSS pixels."""

MAX_TILES, MAX_BOXES = 13, 10
"""How many tile thumbnails of a picture and boxes of a text are shown: more would bury the picture."""


def choose(rows: Sequence[Mapping[str, Any]], count: int, seed: int) -> list[Mapping[str, Any]]:
    """Draws up to `count` rows at random by seed, the tasks taking turns, right and wrong answers alike."""
    generator = random.Random(seed)
    by_task: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_task.setdefault(row["task"], []).append(row)
    for group in by_task.values():
        generator.shuffle(group)
    turns = max(map(len, by_task.values()), default=0)
    return [group[turn] for turn in range(turns) for group in by_task.values() if turn < len(group)][:count]


def card(row: Mapping[str, Any], images: Sequence[bytes], tiler: Tiler | None) -> dict[str, Any]:
    """One question as the template shows it: texts, `verdict` (right, partial, wrong), `pictures`, and what was said
    under each control (`controlled`: name, text)."""
    score = row["score"]
    said = {key.removesuffix("_prediction"): value for key, value in row.items() if key.endswith("_prediction")}
    return {
        **row,
        "controlled": [(name, text) for name, text in said.items() if text is not None],
        "verdict": "right" if score >= 1 else "partial" if score > 0 else "wrong",
        "pictures": [_picture(row, number, images, tiler) for number in range(len(images))],
    }


def _picture(row: Mapping[str, Any], number: int, images: Sequence[bytes], tiler: Tiler | None) -> dict[str, Any]:
    image = decode_image(images[number], f"question '{row['id']}', image {number}")
    grids = row["grids"]
    across, down = grids[number] if grids is not None else (1, 1)
    tiles = list(tiler(image, len(images))) if tiler is not None else []
    golds = parse_boxes(row["answers"][0]) if number == 0 else []
    said = parse_boxes(row["prediction"]) if golds else []
    # A whole factor keeps every pixel of a small picture a sharp square; larger ones look better smoothed.
    factor = int(min(SHOWN_WIDTH / image.width, SHOWN_HEIGHT / image.height))
    return {
        "source": data_uri(shrunk(image, MAX_SIDE)),
        "width": image.width,
        "height": image.height,
        "shown_width": image.width * factor if factor >= 2 else round(SHOWN_HEIGHT * image.width / image.height, 1),
        "crisp": factor >= 2,
        "across": across,
        "down": down,
        "tiles": [data_uri(shrunk(Image.fromarray(tile), MAX_TILE_SIDE)) for tile in tiles[:MAX_TILES]],
        "tiles_hidden": max(0, len(tiles) - MAX_TILES),
        "gold_boxes": [_rectangle(box) for box in golds[:MAX_BOXES]],
        "said_boxes": [_rectangle(box) for box in said[:MAX_BOXES]],
    }


def _rectangle(box: Box) -> dict[str, float]:
    """A box as an SVG rectangle in thousandths of the picture, kept near it however wild the prediction is."""
    x1, x2 = sorted(min(max(x, -50.0), 1050.0) for x in (box.x1, box.x2))
    y1, y2 = sorted(min(max(y, -50.0), 1050.0) for y in (box.y1, box.y2))
    return {"x": x1, "y": y1, "width": x2 - x1, "height": y2 - y1}
