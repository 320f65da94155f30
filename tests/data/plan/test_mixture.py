"""How often the records of each task are in an epoch."""

import numpy as np
import pytest

from vlm_jax.data.plan.index import load_index
from vlm_jax.data.plan.mixture import MixtureConfig, epoch_records, task_weights
from vlm_jax.data.sources import MemorySource


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (dict(sampling="size"), {"a": 40, "b": 20}),
        (dict(sampling="size", epoch_records=30), {"a": 20, "b": 10}),
        (dict(sampling="weight", weights={"a": 1.0, "b": 3.0}), {"a": 15, "b": 45}),
        (dict(sampling="sqrt_size", epoch_records=60), {"a": 60 * 40**0.5 / (40**0.5 + 20**0.5), "b": 24.85}),
        (dict(cap=25), {"a": 25, "b": 20}),
        (dict(cap=25, weights={"b": 3.0}), {"a": 0, "b": 25}),
    ],
)
def test_mixtures(conversations, preparer, changes, expected):
    index = load_index(MemorySource(conversations), preparer)
    weights = task_weights(index, MixtureConfig(rows=1, **changes))
    epochs = [epoch_records(index, weights, (5, 0), epoch) for epoch in range(12)]
    for number, task in enumerate(index.tasks):
        ids = np.flatnonzero(index.task_ids == number)
        seen = np.bincount(np.concatenate(epochs), minlength=60)[ids]
        assert seen.max() - seen.min() <= 1  # in turn
        for records in epochs:
            assert abs(np.isin(records, ids).sum() - expected[task]) <= 1
