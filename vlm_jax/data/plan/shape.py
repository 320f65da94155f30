"""The shape of a row, chosen from the sizes of the records that will be packed into it.

Tokens and tile slots run out together only if a row has them in the proportion in which the records need them, and
small records fill what large ones leave only if a row holds several. So rows of some lengths, with about as many tile
slots as go with each, are packed on trial with a sample of the records, and the shortest row that is filled well is
taken.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

from vlm_jax.data.plan.packing import CHUNK, plan_rows

STEP = 128
"""Row lengths are multiples of it, or the context: what matrix units and attention kernels are cut for."""

GOOD_TOKENS, GOOD_TILES = 0.97, 0.92
"""Shares of token and tile slots from which a row counts as well filled."""

_LENGTHS = (1.0, 1.25, 1.5, 2.0, 3.0, 4.0)  # in longest records
_MARGIN = 0.003  # by which all records may fill less than a sample


class RowShape(NamedTuple):
    """Tokens and tile slots of a row, and the shares of them that a sample of records filled."""

    tokens: int
    tiles: int
    token_fill: float
    tile_fill: float


def choose_shape(
    sizes: np.ndarray,
    context: int,
    tokens: int | None = None,
    tiles: int | None = None,
    packing: bool = True,
) -> RowShape:
    """Row length and tile slots for records of these sizes; a pure function.

    Args:
      sizes: int [n, 2], tokens and tiles of the records of an epoch, each as often as it comes; at least one.
      context: tokens of a row at most. Longer records are left out of account.
      tokens: the row length, where it is given.
      tiles: the tile slots, where they are given.
      packing: whether a row takes several records.

    Returns:
      The shape, which holds every record of at most `context` (or `tokens`) tokens (and `tiles` tiles, if given), and
      the fill of a sample. 1.0 is the fill of no slots.
    """
    limit = context if tokens is None else min(tokens, context)
    sizes = sizes[(sizes[:, 0] <= limit) & (sizes[:, 1] <= (math.inf if tiles is None else tiles))]
    if not len(sizes):
        return RowShape(limit, tiles or 0, 0.0, 0.0)
    most_tokens, most_tiles = (int(most) for most in sizes.max(axis=0))
    if not packing:
        shape = (tokens or _rounded(most_tokens, context), most_tiles if tiles is None else tiles)
        return RowShape(*shape, *_fills(sizes, [np.array([n]) for n in range(len(sizes))], *shape))
    sample = sizes[np.random.default_rng(len(sizes)).permutation(len(sizes))[:CHUNK]]
    lengths = [tokens] if tokens else sorted({_rounded(math.ceil(most_tokens * n), context) for n in _LENGTHS})
    best: RowShape | None = None
    for length in lengths:
        for slots in [tiles] if tiles is not None else _slots(sizes, length, most_tiles):
            rows = plan_rows(sample, length, slots, np.random.default_rng(0))
            shape = RowShape(length, slots, *_fills(sample, rows, length, slots))
            if best is None or _badness(shape) < _badness(best):
                best = shape
        assert best is not None
        if best.token_fill >= GOOD_TOKENS + _MARGIN and best.tile_fill >= GOOD_TILES + _MARGIN:
            break
    assert best is not None
    return best


def _slots(sizes: np.ndarray, length: int, most: int) -> list[int]:
    """Tile slots worth a trial: about as many as the records of a full row have."""
    tokens, tiles = sizes.sum(axis=0).tolist()
    exact = length * tiles / tokens
    return sorted({max(most, round(exact) + extra) for extra in (0, 1, 2)}) if tiles else [0]


def _fills(sizes: np.ndarray, rows: list[np.ndarray], tokens: int, tiles: int) -> tuple[float, float]:
    used = sizes.sum(axis=0)
    return float(used[0] / (len(rows) * tokens)), float(used[1] / (len(rows) * tiles)) if tiles else 1.0


def _badness(shape: RowShape) -> float:
    """How much is missing, tokens before tiles; a shape that is good in both has least."""
    return (
        max(0.0, GOOD_TOKENS + _MARGIN - shape.token_fill)
        + max(0.0, GOOD_TILES + _MARGIN - shape.tile_fill)
        + 1e-3 * (2.0 - shape.token_fill - shape.tile_fill)
    )


def _rounded(tokens: int, context: int) -> int:
    return min(-(-tokens // STEP) * STEP, context)
