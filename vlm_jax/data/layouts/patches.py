"""Tiles as patches and back: what a vision encoder's first layer, a convolution without overlap, looks at."""

from __future__ import annotations

import numpy as np
from einops import rearrange


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


def write_patches(pixels: np.ndarray, out: np.ndarray, patch_size: int) -> None:
    """Writes a block of tiles as patches, so that every pixel is moved once.

    Args:
      pixels: uint8 [rows, height, columns, width, 3], contiguous: tiles that stand together in one picture.
      out: uint8 [rows, columns, N, P*P*3], where they are written.
      patch_size: P, side of a patch in pixels.
    """
    down, across = pixels.shape[1] // patch_size, pixels.shape[3] // patch_size
    whole = pixels[:, : down * patch_size, :, : across * patch_size]
    lines = rearrange(whole, "r (h p) c (w q) channel -> r c h w p (q channel)", p=patch_size, q=patch_size)
    line = np.dtype((np.void, patch_size * 3))  # NumPy moves a patch's line at once, which it does not do with bytes
    out.view(line).reshape(lines.shape[:-1])[...] = lines.view(line)[..., 0]
