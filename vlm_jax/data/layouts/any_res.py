"""Any resolution (LLaVA-NeXT): a view of the whole, and tiles of it at the best of a few grids.

The tiles' visual tokens are laid out as one map, rows and columns that show only padding are left out, and a learned
vector ends each row. Source: `llava/mm_utils.py` and `llava/model/llava_arch.py` of LLaVA-NeXT;
`models/llava_next/{image_processing,modeling}_llava_next.py` of `transformers`, with which this agrees pixel for pixel
and token for token.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator
from typing import Literal, Self

import numpy as np
from PIL import Image

from vlm_jax.config import config_class
from vlm_jax.data.layouts.layout import TileLayout, as_block, token_side, vector
from vlm_jax.errors import UserError

_NEWLINE = vector(0)


@config_class
class AnyRes(TileLayout):
    """Layout of a view of the whole and a grid of tiles.

    Attributes:
      tile_size: side of a square tile in pixels.
      grids: (columns, rows) to choose from. In the release, as here, 2 x 1, 1 x 2, 2 x 2, 1 x 3 and 3 x 1 tiles; of
        equally good ones the first is taken. Without any, there is only the view of the whole.
      unpad: tokens of the grid that show only padding are left out.
      newline: a learned vector stands behind every row of the grid's map.
    """

    type: Literal["any_res"] = "any_res"
    tile_size: int = 336
    grids: tuple[tuple[int, int], ...] = ((2, 1), (1, 2), (2, 2), (1, 3), (3, 1))
    unpad: bool = True
    newline: bool = True

    def __post_init__(self) -> None:
        if self.tile_size < 1:
            raise UserError(f"layout.tile_size: must be positive, got {self.tile_size}")
        if any(min(grid) < 1 for grid in self.grids):
            raise UserError(f"layout.grids: columns and rows must be at least 1, got {self.grids}")

    @property
    def vectors(self) -> tuple[str, ...]:
        """The newline."""
        return ("newline",) if self.newline else ()

    @property
    def limit_is(self) -> str:
        """See `Layout.limit_is`."""
        return f"at most {max(map(math.prod, self.grids), default=0)} tiles a picture beside the whole of it"

    def grid(self, width: int, height: int) -> tuple[int, int]:
        """The grid on which most of the image's pixels survive; of those the one with the least waste."""
        best, best_rank = (1, 1), (-1, 0)
        for columns, rows in self.grids:
            across, down = columns * self.tile_size, rows * self.tile_size
            scale = min(across / width, down / height)
            effective = min(int(width * scale) * int(height * scale), width * height)
            rank = (effective, effective - across * down)
            if rank > best_rank:
                best, best_rank = (columns, rows), rank
        return best

    def tiles(self, width: int, height: int) -> int:
        """The view of the whole, and the grid."""
        columns, rows = self.grid(width, height)
        return 1 + (columns * rows if self.grids else 0)

    def blocks(self, image: Image.Image, size: tuple[int, int]) -> Iterator[np.ndarray]:
        """The whole, stretched to a tile; then the grid, with the image in its middle on black."""
        yield as_block(image.resize((self.tile_size, self.tile_size), Image.Resampling.BICUBIC), 1, 1)
        if not self.grids:
            return
        columns, rows = self.grid(*size)
        canvas = Image.new("RGB", (columns * self.tile_size, rows * self.tile_size))
        inside = _inside(size, canvas.size)
        corner = tuple((whole - part) // 2 for whole, part in zip(canvas.size, inside, strict=True))
        canvas.paste(image.resize(inside, Image.Resampling.BICUBIC), corner)
        yield as_block(canvas, rows, columns)

    def place(self, width: int, height: int, tokens_per_tile: int) -> np.ndarray:
        """The tokens of the whole, then the map of the grid row by row (see `Layout.place`)."""
        whole = np.arange(tokens_per_tile, dtype=np.int32)
        if not self.grids:
            return np.append(whole, np.int32(_NEWLINE)) if self.newline else whole
        columns, rows = self.grid(width, height)
        side = token_side(tokens_per_tile)
        tokens = tokens_per_tile * (1 + np.arange(columns * rows, dtype=np.int32))[:, None] + whole
        picture = tokens.reshape(rows, columns, side, side).swapaxes(1, 2).reshape(rows * side, columns * side)
        if self.unpad:
            picture = _unpadded(picture, width, height)
        if self.newline:
            picture = np.pad(picture, ((0, 0), (0, 1)), constant_values=_NEWLINE)
        return np.concatenate([whole, picture.ravel()])

    def pictures(self, patches: np.ndarray, size: tuple[int, int], patch_size: int) -> list[np.ndarray]:
        """The grid, then the whole (see `Layout.pictures`)."""
        whole, *tiles = super().pictures(patches, size, patch_size)
        return [*tiles, whole]

    def at_most(self, tiles: int) -> Self:
        """The layout with the grids of at most so many tiles; the view of the whole does not count."""
        return dataclasses.replace(self, grids=tuple(grid for grid in self.grids if math.prod(grid) <= tiles))


def _inside(size: tuple[int, int], room: tuple[int, int]) -> tuple[int, int]:
    """Width and height of an image of `size` that fills `room` and keeps its aspect ratio."""
    width, height = size
    across, down = room
    if across / width < down / height:
        return across, min(math.ceil(height * (across / width)), down)
    return min(math.ceil(width * (down / height)), across), down


def _unpadded(picture: np.ndarray, width: int, height: int) -> np.ndarray:
    """The part of a map [rows, columns] that an image of this size in its middle covers.

    The same number of rows is left out above and below, so there may be one more than the image needs; of an image of
    a pixel's height none may be left.
    """
    rows, columns = picture.shape
    if width / height > columns / rows:
        kept = int(round(height * (columns / width), 7))
        out = (rows - kept) // 2
        return picture[out : rows - out]
    kept = int(round(width * (rows / height), 7))
    out = (columns - kept) // 2
    return picture[:, out : columns - out]
