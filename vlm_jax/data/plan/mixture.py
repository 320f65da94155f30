"""The mixture: which records an epoch holds, by the weights of their tasks, and in which order."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Literal

import numpy as np

from vlm_jax.config import config_class
from vlm_jax.data.plan.index import Index
from vlm_jax.data.prepare import TooLong
from vlm_jax.errors import UserError

_EXACT = 1e-6  # what sums of fractions may lack

Sampling = Literal["repeat", "weight", "size", "sqrt_size"]
Order = Literal["random", "group"]


@config_class
class MixtureConfig:
    """Data of a stage and the static shape of its batches.

    Attributes:
      weights: by task; tasks that are not named are left out. Without any names the data says it (`repeat_time` of
        InternVL's meta files), and where it does not, every task has weight 1.
      sampling: what a weight means. `repeat`: how often an epoch holds every record of the task (2 is twice, 0.25 is a
        quarter of the records in turn, so that four epochs hold each once). Otherwise a share of the epoch, in
        proportion to the weight alone (`weight`), times the number of the task's records (`size`), or times its square
        root (`sqrt_size`, InternVL's `use_data_resampling`).
      epoch_records: records of an epoch where weights are shares; 0 is as many as those tasks have together.
      cap: records of one task in an epoch at most, in turn; 0 is no limit.
      rows: B, rows of a batch (over all hosts).
      tokens: T, tokens of a row; None chooses it from the sizes of the records (`vlm_jax.data.plan.shape`).
      tiles: K, tile slots of a row; None chooses it likewise.
      packing: a row takes as many conversations as fit; otherwise one, so that `rows` counts conversations.
      order: without packing, which conversations share a batch. `random`: any; `group`: such as all have images, or all
        have none, and are of like length (`vlm_jax.data.plan.grouping`).
      window: records whose packing is planned at once.
      too_long: what becomes of a conversation of more than `tokens`: it counts as a bad record (`error`), or it is cut
        at the end (`vlm_jax.data.prepare.Preparer`).
    """

    weights: dict[str, float] = dataclasses.field(default_factory=dict)
    sampling: Sampling = "repeat"
    epoch_records: int = 0
    cap: int = 0
    rows: int
    tokens: int | None = None
    tiles: int | None = None
    packing: bool = True
    window: int = 65536
    too_long: TooLong = "error"
    # Not in the repr, from which plans of before the field was there have their digests (`Batches.digest`).
    order: Order = dataclasses.field(default="random", repr=False)

    def __post_init__(self) -> None:
        if self.order == "group" and self.packing:
            raise UserError("data.order: 'group' is for conversations with a row each; set data.packing to False")
        for field, least in {"rows": 1, "tokens": 1, "tiles": 0, "window": 1, "epoch_records": 0, "cap": 0}.items():
            value = getattr(self, field)
            if value is not None and value < least:
                raise UserError(f"data.{field}: must be at least {least}, got {value}")
        if self.epoch_records and self.sampling == "repeat":
            raise UserError("data.epoch_records: has no meaning where weights say how often (data.sampling is repeat)")
        for task, weight in self.weights.items():
            if not (math.isfinite(weight) and weight >= 0):
                raise UserError(f"data.weights.{task}: must be a number from 0, got {weight}")


def task_weights(index: Index, config: MixtureConfig, of_source: Mapping[str, float] | None = None) -> np.ndarray:
    """How often an epoch holds every record of each of `index.tasks`, float64.

    Args:
      index: of the source; records that cannot be used do not count.
      config: its weights count, if it has any.
      of_source: the source's own weights otherwise; what it does not name has weight 1.

    Raises:
      UserError: a weight names a task that the data lacks, or nothing has a weight.
    """
    if not config.weights:
        weights = np.array([(of_source or {}).get(task, 1.0) for task in index.tasks])
    else:
        unknown = sorted(set(config.weights) - set(index.tasks))
        if unknown:
            raise UserError(f"weights: no task {', '.join(unknown)} in the data, there are {', '.join(index.tasks)}")
        weights = np.array([config.weights.get(task, 0.0) for task in index.tasks])
    if not weights.any():
        raise UserError("weights: every weight is 0, nothing is left to learn from")
    counts = np.array([np.count_nonzero(index.task_ids == task) for task in range(len(index.tasks))])
    if config.sampling != "repeat":
        shares = weights * counts ** {"weight": 0.0, "size": 1.0, "sqrt_size": 0.5}[config.sampling] * (counts > 0)
        records = config.epoch_records or counts[weights > 0].sum()
        weights = shares / max(shares.sum(), 1e-300) * records / np.maximum(counts, 1)
    return np.minimum(weights, config.cap / np.maximum(counts, 1)) if config.cap else weights


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
        whole = int(weight + _EXACT)
        chosen += [records] * whole
        part = max(weight - whole, 0.0) * len(records)
        first, last = (int(part * number + _EXACT) for number in (epoch, epoch + 1))
        order = np.random.default_rng([*key, 0, task]).permutation(records)
        chosen.append(order[np.arange(first, last) % max(len(records), 1)])
    return np.random.default_rng([*key, 1, epoch]).permutation(np.concatenate(chosen))
