"""What of a source fits the rows of a stage: their shape, and which records no row holds."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np

from vlm_jax.data.conversation import RecordError
from vlm_jax.data.plan.index import BAD, Index
from vlm_jax.data.plan.mixture import MixtureConfig, task_weights
from vlm_jax.data.plan.shape import RowShape, choose_shape
from vlm_jax.data.sources import Source, WeighedSource, place_of


class Fit(NamedTuple):
    """The result of `fit`.

    Attributes:
      shape: tokens and tile slots of a row.
      limit: tokens that a conversation may have.
      index: in which records of positive weight that no row holds are bad.
      weights: float64, how often an epoch holds every record of each of `index.tasks`.
    """

    shape: RowShape
    limit: int
    index: Index
    weights: np.ndarray


def fit(source: Source, index: Index, config: MixtureConfig, context: int) -> Fit:
    """Chooses the shape of a row, where the config leaves it open, and sorts out what is too large for it.

    Args:
      source: the records.
      index: of them; it has a good one.
      config: of the stage.
      context: longest conversation of the model.

    Raises:
      UserError: weights that do not fit the data.
    """
    weights = _weights(source, index, config)
    shape = _shape(index, weights, config, context)
    limit = min(shape.tokens, context)
    tokens, tiles = index.sizes.T
    can_be_cut = (index.least <= limit) & (config.too_long == "truncate")
    fits = ((tokens <= limit) | can_be_cut) & (tiles <= shape.tiles)
    used = (index.task_ids != BAD) & (weights[index.task_ids] > 0)
    too_large = np.flatnonzero(used & ~fits)
    if not len(too_large):
        return Fit(shape, limit, index, weights)
    index = _without(source, index, too_large, f"{limit:,} tokens and {shape.tiles} tiles", config)
    # Shares of an epoch are other ones without them.
    return Fit(shape, limit, index, _weights(source, index, config))


def _weights(source: Source, index: Index, config: MixtureConfig) -> np.ndarray:
    return task_weights(index, config, source.weights if isinstance(source, WeighedSource) else None)


def _shape(index: Index, weights: np.ndarray, config: MixtureConfig, context: int) -> RowShape:
    if config.tokens is not None and config.tiles is not None:
        return RowShape(config.tokens, config.tiles, 0.0, 0.0)
    used = np.flatnonzero(index.task_ids != BAD)
    of_each = weights[index.task_ids[used]]
    often = np.where(of_each > 0, np.maximum(1, np.round(of_each)), 0).astype(int)
    sizes = index.sizes[np.repeat(used, often)]
    if config.too_long == "truncate":
        sizes = np.minimum(sizes, [min(context, config.tokens or context), np.iinfo(np.int32).max])
    return choose_shape(sizes, context, config.tokens, config.tiles, config.packing)


def _without(source: Source, index: Index, left_out: np.ndarray, room: str, config: MixtureConfig) -> Index:
    bad = dict(index.bad)
    for number in left_out.tolist():
        tokens, tiles = index.sizes[number].tolist()
        least = f" ({index.least[number]:,} when it is cut)" if config.too_long == "truncate" else ""
        bad[number] = RecordError(
            place_of(source, number),
            "too long",
            f"does not fit a row: {tokens:,} tokens{least} and {tiles} tiles; a row holds {room} (data.tokens, or the "
            "model's context, and data.tiles)",
        )
    ids, sizes = index.task_ids.copy(), index.sizes.copy()
    ids[left_out], sizes[left_out] = BAD, 0
    return dataclasses.replace(index, task_ids=ids, sizes=sizes, bad=bad)
