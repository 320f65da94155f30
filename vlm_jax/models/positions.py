"""Learned positions of a vision tower for another grid of patches, on the host or inside a forward pass."""

from __future__ import annotations

from functools import partial
from typing import TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange

Grid = int | tuple[int, int]
"""Patches down and across; one number stands for both."""

Table = TypeVar("Table", np.ndarray, jax.Array)

_A = np.float32(-0.75)
"""Keys' parameter of the cubic kernel, as PyTorch has it (Pillow and JAX have -0.5)."""


def resize_positions(table: Table, old_grid: Grid, new_grid: Grid, class_token: bool) -> Table:
    """A position table for another grid of patches, by bicubic interpolation.

    The rule is that of InternViT's `resize_pos_embeddings` and of `interpolate_pos_encoding` in `transformers`:
    PyTorch's `interpolate(mode="bicubic", align_corners=False)` in float32, without antialiasing.

    Args:
      table: [N1, D], any float dtype: the class token's position first, if there is one, then the grid row by row. A
        NumPy array is resized by NumPy, on the host; a JAX array by JAX, in full float32, and can be differentiated.
      old_grid, new_grid: patches down and across.
      class_token: whether the first row belongs to the class token; it stays as it is.

    Returns:
      [N1', D] in the dtype of `table`, which itself is returned where the grids are equal.

    Raises:
      ValueError: the table has another number of rows.
    """
    old, new = _pair(old_grid), _pair(new_grid)
    first = int(class_token)
    if len(table) != first + old[0] * old[1]:
        raise ValueError(f"a table of {len(table)} positions is not one of {first} + {old[0]} x {old[1]}")
    if old == new:
        return table
    einsum, concatenate = np.einsum, np.concatenate
    if isinstance(table, jax.Array):
        einsum, concatenate = partial(jnp.einsum, precision="highest"), jnp.concatenate
    down, across = (cubic_weights(*sizes) for sizes in zip(old, new, strict=True))
    grid = rearrange(table[first:].astype(np.float32), "(h w) d -> h w d", h=old[0])
    resized = einsum("uh,hvd->uvd", down, einsum("vw,hwd->hvd", across, grid))
    return concatenate([table[:first], rearrange(resized, "h w d -> (h w) d").astype(table.dtype)])


def _pair(grid: Grid) -> tuple[int, int]:
    return (grid, grid) if isinstance(grid, int) else grid


def cubic_weights(old: int, new: int) -> np.ndarray:
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
