"""Dynamic tiling: an image becomes a grid of square tiles whose shape is nearest to its own, plus a thumbnail.

InternVL's rule (`internvl/train/dataset.py::dynamic_preprocess`), pixel for pixel: the image is stretched to the whole
grid with Pillow's bicubic filter, without keeping its aspect or padding, and cut into tiles in row-major order.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Literal

import numpy as np
from einops import rearrange
from PIL import Image

from vlm_jax.config import config_class
from vlm_jax.errors import UserError

MOST_TILES = 1024
"""More tiles than any model takes; the search for a grid goes over all shapes of up to so many."""


@config_class
class ClosestAspect:
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


def count_tiles(width: int, height: int, layout: ClosestAspect) -> int:
    """Number of tiles of an image, thumbnail included."""
    columns, rows = choose_grid(width, height, layout)
    return _with_thumbnail(columns * rows, layout)


def cut_tiles(image: Image.Image, layout: ClosestAspect, size: tuple[int, int] | None = None) -> np.ndarray:
    """Cuts an image into tiles.

    Args:
      image: of mode RGB or L.
      layout: how it is cut.
      size: width and height by which the grid is chosen; the image's own when None.

    Returns:
      uint8 [K, S, S, 3]: the grid in row-major order, then the thumbnail (if there is one).
    """
    side = layout.tile_size
    return cut_patches(image, layout, side, size=size).reshape(-1, side, side, 3)


def cut_patches(
    image: Image.Image,
    layout: ClosestAspect,
    patch_size: int,
    out: np.ndarray | None = None,
    size: tuple[int, int] | None = None,
) -> np.ndarray:
    """The same as `patchify(cut_tiles(image, layout), patch_size)`, but every pixel is written once.

    Args:
      image, layout, size: as in `cut_tiles`.
      patch_size: P, side of a patch in pixels.
      out: uint8 [K, N, P*P*3], contiguous, where the patches are written; a new array when None.

    Returns:
      uint8 [K, N, P*P*3]: `out`, if it was given.

    Raises:
      ValueError: `out` has another shape, or cannot be written to so.
    """
    columns, rows = choose_grid(*(size or image.size), layout)
    side, cells = layout.tile_size, columns * rows
    shape = (_with_thumbnail(cells, layout), (side // patch_size) ** 2, patch_size**2 * 3)
    if out is None:
        out = np.empty(shape, np.uint8)
    elif out.shape != shape or out.dtype != np.uint8 or not out.flags.c_contiguous:
        raise ValueError(f"out must be contiguous uint8 {shape}, but is {out.dtype} {out.shape}")
    _write_patches(_resized(image, columns, rows, layout), out[:cells].reshape(rows, columns, *shape[1:]), patch_size)
    if len(out) > cells:
        _write_patches(_resized(image, 1, 1, layout), out[cells:, None], patch_size)
    return out


def _resized(image: Image.Image, columns: int, rows: int, layout: ClosestAspect) -> np.ndarray:
    """uint8 [rows, S, columns, S, 3]; the image stretched to so many tiles."""
    side = layout.tile_size
    resized = image.resize((side * columns, side * rows), Image.Resampling.BICUBIC, reducing_gap=layout.reducing_gap)
    pixels = np.asarray(resized if resized.mode == "RGB" else resized.convert("RGB"))
    return pixels.reshape(rows, side, columns, side, 3)


def _write_patches(pixels: np.ndarray, out: np.ndarray, patch_size: int) -> None:
    """Writes [rows, S, columns, S, 3] into [rows, columns, N, P*P*3]."""
    patches = pixels.shape[1] // patch_size
    whole = pixels[:, : patches * patch_size, :, : patches * patch_size]
    lines = rearrange(whole, "r (h p) c (w q) channel -> r c h w p (q channel)", p=patch_size, q=patch_size)
    line = np.dtype((np.void, patch_size * 3))  # NumPy moves a patch's line at once, which it does not do with bytes
    out.view(line).reshape(lines.shape[:-1])[...] = lines.view(line)[..., 0]


def patchify(tiles: np.ndarray, patch_size: int) -> np.ndarray:
    """Tiles as patches in raster order, each patch as its rows of RGB pixels.

    Args:
      tiles: uint8 [K, height, width, 3]. What is left right and below of the last whole patch is dropped, as a
        convolution without padding does.
      patch_size: P, side of a patch in pixels.

    Returns:
      uint8 [K, N, P*P*3], contiguous.
    """
    height, width = (side - side % patch_size for side in tiles.shape[1:3])
    whole = tiles[:, :height, :width]
    return np.ascontiguousarray(
        rearrange(whole, "k (h p) (w q) c -> k (h w) (p q c)", p=patch_size, q=patch_size),
    )


def unpatchify(patches: np.ndarray, grid: tuple[int, int], patch_size: int) -> np.ndarray:
    """The inverse of `patchify`: [K, N, P*P*3] to [K, height, width, 3], with `grid` patches down and across.

    Pixels that `patchify` dropped do not come back.
    """
    down, across = grid
    return rearrange(patches, "k (h w) (p q c) -> k (h p) (w q) c", h=down, w=across, p=patch_size, q=patch_size, c=3)


def _with_thumbnail(cells: int, layout: ClosestAspect) -> int:
    return cells + 1 if layout.thumbnail and cells != 1 else cells


def share(layout: ClosestAspect, images: int) -> ClosestAspect:
    """The layout of each of `images` of one conversation: they share `max_tiles`, and each has one at least.

    InternVL's rule (`internvl/train/internvl_chat_finetune.py`, `multi_modal_multi_image_get_item`).
    """
    if images < 2:
        return layout
    most = max(1, layout.max_tiles // images)
    return dataclasses.replace(layout, max_tiles=most, min_tiles=min(layout.min_tiles, most))


@functools.cache
def _grids(min_tiles: int, max_tiles: int) -> tuple[tuple[int, int], ...]:
    """All (columns, rows) with an allowed product, from few tiles to many.

    Upstream orders equal products by the hash order of a Python set; no image is known for which that matters.
    """
    sides = range(1, max_tiles + 1)
    grids = [(i, j) for i in sides for j in sides if min_tiles <= i * j <= max_tiles]
    return tuple(sorted(grids, key=lambda grid: (grid[0] * grid[1], grid)))
