"""Dynamic tiling: an image becomes a grid of square tiles whose shape is nearest to its own, plus a thumbnail.

InternVL's rule (`internvl/train/dataset.py::dynamic_preprocess`), pixel for pixel: the image is stretched to the whole
grid with Pillow's bicubic filter, without keeping its aspect or padding, and cut into tiles in row-major order.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Literal, Self

import numpy as np
from PIL import Image

from vlm_jax.config import config_class
from vlm_jax.data.layouts.layout import TileLayout, as_block
from vlm_jax.errors import UserError

MOST_TILES = 1024
"""More tiles than any model takes; the search for a grid goes over all shapes of up to so many."""


@config_class
class ClosestAspect(TileLayout):
    """Layout that chooses the grid with the aspect ratio nearest to the image's.

    Attributes:
      tile_size: side of a square tile in pixels.
      min_tiles: grids with fewer tiles are not considered.
      max_tiles: grids with more tiles are not considered; the thumbnail does not count.
      thumbnail: append the whole image as one more tile, if the grid has more than one.
      draft: decode a JPEG that is much larger than its grid at 1/2, 1/4 or 1/8 of its size. Quicker, other pixels.
      reducing_gap: an image that shrinks is first averaged over blocks of pixels, as large as leaves at least this
        factor to the bicubic filter (Pillow's `reducing_gap`; 2 or 3 is usual, None is never). Quicker, other pixels.
    """

    type: Literal["closest_aspect"] = "closest_aspect"
    tile_size: int = 448
    min_tiles: int = 1
    max_tiles: int = 12
    thumbnail: bool = True
    draft: bool = False
    reducing_gap: float | None = None

    def __post_init__(self) -> None:
        if self.tile_size < 1:
            raise UserError(f"layout.tile_size: must be positive, got {self.tile_size}")
        if not 1 <= self.min_tiles <= self.max_tiles:
            raise UserError(f"layout.min_tiles: must lie in 1..max_tiles ({self.max_tiles}), got {self.min_tiles}")
        if self.max_tiles > MOST_TILES:
            raise UserError(f"layout.max_tiles: must be at most {MOST_TILES}, got {self.max_tiles}")
        if self.reducing_gap is not None and not self.reducing_gap >= 1:
            raise UserError(f"layout.reducing_gap: must be at least 1, or None, got {self.reducing_gap}")

    @property
    def limit_is(self) -> str:
        """See `Layout.limit_is`."""
        return f"at most {self.max_tiles} tiles a picture"

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """See `choose_grid`."""
        return choose_grid(width, height, self)

    def tiles(self, width: int, height: int) -> int:
        """Those of the grid, and the thumbnail."""
        columns, rows = self.grid(width, height)
        return columns * rows + (self.thumbnail and columns * rows != 1)

    def blocks(self, image: Image.Image, size: tuple[int, int]) -> Iterator[np.ndarray]:
        """The grid, then the thumbnail (if there is one)."""
        columns, rows = self.grid(*size)
        yield self._stretched(image, columns, rows)
        if self.thumbnail and columns * rows != 1:
            yield self._stretched(image, 1, 1)

    def _stretched(self, image: Image.Image, columns: int, rows: int) -> np.ndarray:
        size = (self.tile_size * columns, self.tile_size * rows)
        return as_block(image.resize(size, Image.Resampling.BICUBIC, reducing_gap=self.reducing_gap), rows, columns)

    def among(self, images: int) -> Self:
        """The images of a conversation share `max_tiles`, and each has one at least.

        InternVL's rule (`internvl/train/internvl_chat_finetune.py`, `multi_modal_multi_image_get_item`).
        """
        return self if images < 2 else self.at_most(max(1, self.max_tiles // images))

    def at_most(self, tiles: int) -> Self:
        """The layout with another `max_tiles`."""
        return dataclasses.replace(self, max_tiles=tiles, min_tiles=min(self.min_tiles, tiles))

    def enough(self, width: int, height: int) -> tuple[int, int]:
        """Width and height in pixels of the grid."""
        columns, rows = self.grid(width, height)
        return columns * self.tile_size, rows * self.tile_size


def choose_grid(width: int, height: int, layout: ClosestAspect) -> tuple[int, int]:
    """Columns and rows of the grid for an image of `width` x `height` pixels.

    Grids are scanned from few tiles to many; on exactly equal distance the larger one replaces the smaller if the image
    has more than half as many pixels as the larger grid.
    """
    aspect = width / height
    best, best_distance = (1, 1), float("inf")
    for columns, rows in _grids(layout.min_tiles, layout.max_tiles):
        distance = abs(aspect - columns / rows)
        if distance < best_distance:
            best, best_distance = (columns, rows), distance
        elif distance == best_distance and width * height > 0.5 * layout.tile_size**2 * columns * rows:
            best = (columns, rows)
    return best


@functools.cache
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) with an allowed product, from few tiles to many.

    Upstream orders equal products by the hash order of a Python set; no image is known for which that matters.
    """
    sides = range(1, max_tiles + 1)
    grids = [(i, j) for i in sides for j in sides if min_tiles <= i * j <= max_tiles]
    return tuple(sorted(grids, key=lambda grid: (grid[0] * grid[1], grid)))
