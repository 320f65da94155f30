"""How a run will pack what a survey found: the shape of a row, which records no row holds, and the rows themselves."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from vlm_jax.data.conversation import RecordError
from vlm_jax.data.index import BAD, Index
from vlm_jax.data.mixture import MixtureConfig, epoch_records, task_weights
from vlm_jax.data.packing import plan_rows
from vlm_jax.data.shape import choose_shape
from vlm_jax.data.sources import Source, WeighedSource, place_of


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
    index, config = _with_room(source, index, context, tokens, tiles)
    if config is None:
        return None, index
    records = epoch_records(index, _weights(source, index, config), (seed, 0), 0)
    window = records[: config.window]
    sizes = index.sizes[window]
    if not len(window):  # an epoch may be empty where all weights are fractions
        return None, index
    rows = [window[row] for row in plan_rows(sizes, config.tokens, config.tiles, np.random.default_rng([seed, 2]))]
    used, slots = sizes.sum(axis=0), len(rows) * np.array([config.tokens, config.tiles])
    fills = [float(part / whole) if whole else 1.0 for part, whole in zip(used, slots, strict=True)]
    return Packing(config.tokens, config.tiles, rows, *fills, len(window), len(records)), index


def _with_room(
    source: Source, index: Index, context: int, tokens: int | None, tiles: int | None
) -> tuple[Index, MixtureConfig | None]:
    """The index without the records that no row holds, and the shape of a row, if a record is left."""
    good = index.task_ids != BAD
    if not good.any():
        return index, None
    config = MixtureConfig(rows=1, tokens=tokens, tiles=tiles)
    often = np.maximum(1, np.round(_weights(source, index, config)))[index.task_ids[good]].astype(int)
    shape = choose_shape(np.repeat(index.sizes[good], often, axis=0), context, tokens, tiles)
    config = dataclasses.replace(config, tokens=shape.tokens, tiles=shape.tiles)
    limit = min(shape.tokens, context)
    too_large = np.flatnonzero(good & ((index.sizes[:, 0] > limit) | (index.sizes[:, 1] > shape.tiles)))
    bad = dict(index.bad)
    for number in too_large.tolist():
        size = index.sizes[number].tolist()
        detail = f"{size[0]:,} tokens and {size[1]} tiles; a row holds {limit:,} and {shape.tiles}"
        bad[number] = RecordError(place_of(source, number), "too long", detail)
    ids, sizes = index.task_ids.copy(), index.sizes.copy()
    ids[too_large], sizes[too_large] = BAD, 0
    index = dataclasses.replace(index, task_ids=ids, sizes=sizes, bad=bad)
    return index, config if (ids != BAD).any() else None


def _weights(source: Source, index: Index, config: MixtureConfig) -> np.ndarray:
    return task_weights(index, config, source.weights if isinstance(source, WeighedSource) else None)
