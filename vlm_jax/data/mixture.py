"""The mixture: which records an epoch holds, by the weights of their tasks, and in which order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import numpy as np

from vlm_jax.config import config_class
from vlm_jax.data.index import Index
from vlm_jax.data.prepare import TooLong
from vlm_jax.errors import UserError


@config_class
class MixtureConfig:
    """Data of a stage and the static shape of its batches.

    Attributes:
      weights: how often an epoch holds every record of a task: 2 is twice, 0.25 is a quarter of the records in turn, so
        that four epochs hold each once. Tasks that are not named are left out; without any names the data says it
        (`repeat_time` of InternVL's meta files), and where it does not, every task has weight 1.
      rows: B, rows of a batch (over all hosts).
      tokens: T, tokens of a row.
      tiles: K, tile slots of a row.
      packing: a row takes as many conversations as fit; otherwise one, so that `rows` counts conversations.
      window: records whose packing is planned at once.
      too_long: what becomes of a conversation of more than `tokens`: an error, or it is cut at the end
        (`vlm_jax.data.prepare.Preparer`).
    """

    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    rows: int
    tokens: int
    tiles: int
    packing: bool = True
    window: int = 65536
    too_long: TooLong = "error"

    def __post_init__(self) -> None:
        for field in ("rows", "tokens", "window"):
            if getattr(self, field) < 1:
                raise UserError(f"data.{field}: must be positive, got {getattr(self, field)}")
        if self.tiles < 0:
            raise UserError(f"data.tiles: must not be negative, got {self.tiles}")
        for task, weight in self.weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise UserError(f"data.weights.{task}: must be a number from 0, got {weight}")


def task_weights(index: Index, config: MixtureConfig, of_source: Mapping[str, float] | None = None) -> np.ndarray:
    """The weight of each of `index.tasks`, float64.

    Args:
      index: of the source.
      config: its weights count, if it has any.
      of_source: the source's own weights otherwise; what it does not name has weight 1.

    Raises:
      UserError: a weight names a task that the data lacks, or nothing has a weight.
    """
    if not config.weights:
        return np.array([(of_source or {}).get(task, 1.0) for task in index.tasks])
    unknown = sorted(set(config.weights) - set(index.tasks))
    if unknown:
        raise UserError(f"weights: no task {', '.join(unknown)} in the data, there are {', '.join(index.tasks)}")
    weights = np.array([config.weights.get(task, 0.0) for task in index.tasks])
    if not weights.any():
        raise UserError("weights: every weight is 0, nothing is left to learn from")
    return weights


def epoch_records(index: Index, weights: np.ndarray, key: tuple[int, ...], epoch: int) -> np.ndarray:
    """Numbers of the records of one epoch in the order in which they are packed; a pure function of its arguments.

    A fractional part f of a weight takes the next f * n records of a fixed permutation of the task's n records, going
    round: after any number of epochs E every record of a task of weight w was seen floor(E*w) or ceil(E*w) times (to
    within one).

    Args:
      index: of the source.
      weights: from `task_weights`.
      key: what the random order depends on besides the epoch (seed, stage).
      epoch: from 0.

    Returns:
      int64 [records of the epoch].
    """
    chosen = []
    for task, weight in enumerate(weights.tolist()):
        records = np.flatnonzero(index.task_ids == task)
        whole = int(weight)
        chosen += [records] * whole
        part = (weight - whole) * len(records)
        first, last = int(part * epoch), int(part * (epoch + 1))
        order = np.random.default_rng([*key, 0, task]).permutation(records)
        chosen.append(order[np.arange(first, last) % max(len(records), 1)])
    return np.random.default_rng([*key, 1, epoch]).permutation(np.concatenate(chosen))
