"""How a run will pack what a survey found: the shape of a row, which records no row holds, and the rows themselves."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from vlm_jax.data.plan.fit import fit
from vlm_jax.data.plan.index import BAD, Index
from vlm_jax.data.plan.mixture import MixtureConfig, epoch_records
from vlm_jax.data.plan.packing import plan_rows
from vlm_jax.data.sources import Source


class Packing(NamedTuple):
    """How the first window of an epoch is packed.

    Attributes:
      tokens, tiles: of a row.
      rows: row by row, the numbers of its records.
      token_fill, tile_fill: shares of all slots that are filled; 1 where there are none.
      records, whole: of the window, and of the epoch.
    """

    tokens: int
    tiles: int
    rows: list[np.ndarray]
    token_fill: float
    tile_fill: float
    records: int
    whole: int


def expected_packing(
    source: Source, index: Index, context: int, tokens: int | None = None, tiles: int | None = None, seed: int = 0
) -> tuple[Packing | None, Index]:
    """Plans the beginning of an epoch of the whole source, each part as often as the source says.

    Args:
      source: the records.
      index: of them.
      context: longest conversation of the model.
      tokens, tiles: of a row; None chooses them from the sizes.
      seed: of the run.

    Returns:
      The packing, or None if no record is left; and the index in which records that no row holds are bad.
    """
    if (index.task_ids == BAD).all():
        return None, index
    config = MixtureConfig(rows=1, tokens=tokens, tiles=tiles)
    shape, _, index, weights = fit(source, index, config, context)
    records = epoch_records(index, weights, (seed, 0), 0)
    window = records[: config.window]
    sizes = index.sizes[window]
    if not len(window):  # an epoch may be empty where all weights are fractions
        return None, index
    rows = [window[row] for row in plan_rows(sizes, shape.tokens, shape.tiles, np.random.default_rng([seed, 2]))]
    used, slots = sizes.sum(axis=0), len(rows) * np.array(shape[:2])
    fills = [float(part / whole) if whole else 1.0 for part, whole in zip(used, slots, strict=True)]
    return Packing(shape.tokens, shape.tiles, rows, *fills, len(window), len(records)), index
