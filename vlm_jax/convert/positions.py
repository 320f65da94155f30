"""Learned positions of a vision tower for another size of image."""

from __future__ import annotations

import numpy as np
from einops import rearrange

_A = np.float32(-0.75)
"""Keys' parameter of the cubic kernel, as PyTorch has it (Pillow and JAX have -0.5)."""


def resize_positions(table: np.ndarray, old_grid: int, new_grid: int, class_token: bool) -> np.ndarray:
    """A position table for another grid of patches, by bicubic interpolation.

    The rule is that of InternViT's `resize_pos_embeddings` and of `interpolate_pos_encoding` in `transformers`:
    PyTorch's `interpolate(mode="bicubic", align_corners=False)` in float32, without antialiasing.

    Args:
      table: [N1, D], any float dtype: the class token's position first, if there is one, then the grid row by row.
      old_grid, new_grid: patches along a side.
      class_token: whether the first row belongs to the class token; it stays as it is.

    Returns:
      [N1', D] in the dtype of `table`, which itself is returned where the grids are equal.

    Raises:
      ValueError: the table has another number of rows.
    """
    first = int(class_token)
    if len(table) != first + old_grid**2:
        raise ValueError(f"a table of {len(table)} positions is not one of {first} + {old_grid} x {old_grid}")
    if old_grid == new_grid:
        return table
    weights = _cubic_weights(old_grid, new_grid)
    grid = rearrange(table[first:].astype(np.float32), "(h w) d -> h w d", h=old_grid)
    across = np.einsum("vw,hwd->hvd", weights, grid)
    resized = rearrange(np.einsum("uh,hvd->uvd", weights, across), "h w d -> (h w) d")
    return np.concatenate([table[:first], resized.astype(table.dtype)])


def _cubic_weights(old: int, new: int) -> np.ndarray:
    """float32 [new, old]: what each old place along one axis counts for each new one; outside, the border repeats.

    Every step is rounded to float32 as PyTorch rounds it: the places of 24 in 32 are not exact in it.
    """
    half = np.float32(0.5)
    source = np.float32(old) / np.float32(new) * (np.arange(new, dtype=np.float32) + half) - half
    below = np.floor(source)
    past = source - below
    before = 1 - past
    weights = np.zeros((new, old), np.float32)
    for offset, values in ((-1, _far(past + 1)), (0, _near(past)), (1, _near(before)), (2, _far(before + 1))):
        index = np.clip(below.astype(np.int64) + offset, 0, old - 1)
        np.add.at(weights, (np.arange(new), index), values)
    return weights


def _near(x: np.ndarray) -> np.ndarray:
    """Keys' kernel at distances 0 to 1 (R. Keys 1981, equation 15 with a free parameter)."""
    return ((_A + 2) * x - (_A + 3)) * x * x + 1


def _far(x: np.ndarray) -> np.ndarray:
    """The same at distances 1 to 2."""
    return ((_A * x - 5 * _A) * x + 8 * _A) * x - 4 * _A
