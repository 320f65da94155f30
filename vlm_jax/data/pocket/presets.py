"""How many records the pocket data set has: by preset, split and task."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

from vlm_jax.data.pocket.scene import CURRICULUM, TASKS


@dataclasses.dataclass(frozen=True)
class Preset:
    """Number of records by split and task.

    Attributes:
      records: split → task → how many.
      hard: training asks more often what is hard. In a short run that takes away from what can be learned in it.
    """

    records: Mapping[str, Mapping[str, int]]
    hard: bool = False

    @property
    def total(self) -> int:
        """Records of all splits and tasks."""
        return sum(sum(tasks.values()) for tasks in self.records.values())


def _preset(train: tuple[int, ...], validation: int, test: int, hard: bool = False) -> Preset:
    return Preset(
        {
            "train": dict(zip((*TASKS, *CURRICULUM), train, strict=True)),
            "validation": dict.fromkeys(TASKS, validation),
            "test": dict.fromkeys(TASKS, test),
        },
        hard,
    )


PRESETS = {
    "default": _preset((2500, 2000, 2500, 1500, 2500, 1500, 4000, 7000, 10000, 0), 50, 200),
    "large": _preset((8000, 6000, 8000, 5000, 8000, 5000, 5000, 14000, 24000, 24000), 50, 200, hard=True),
    "quick": _preset((250, 200, 200, 120, 200, 120, 300, 300, 300, 0), 8, 24),
    "tiny": _preset((24, 12, 16, 8, 12, 8, 12, 12, 15, 8), 4, 8),
}
"""Sizes by name; train is given by task in the order of `TASKS`, then `CURRICULUM`."""
