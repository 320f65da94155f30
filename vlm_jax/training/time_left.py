"""How long a run will still train: steps to come at the speed of steps so far, each counted by what it computes.

Stages differ, so a second of one is no second of another. A step's cost is the usual estimate of its multiplications
(`step_cost`), and what a unit of cost took so far is what it will take. The first step of a stage compiles, so it is
never part of a speed; the mean of such steps is added for every stage to come. As long as nothing is known, nothing is
claimed.
"""

from __future__ import annotations

import collections
from collections.abc import Sequence
from typing import Any

from vlm_jax.globs import flatten
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.training.recipe import Stage

ENOUGH = 4
"""Steps of a stage after which its own speed counts, rather than that of the stages before."""

RECENT = 50
"""A stage's speed is that of so many last steps: a machine may get busy, or free again."""


def step_cost(stage: Stage, tokens: int, tiles: int, trainable: Any, frozen: Any, student: VLMConfig) -> float:
    """Multiplications of a step, up to a common factor: parameters times the places at which they are applied.

    What trains counts three times (forward, and backward for inputs and for weights; Kaplan et al. 2020), a frozen
    decoder twice where gradients must pass it, all else once. Attention's own products are left out.

    Args:
      stage: the stage.
      tokens, tiles: of a row.
      trainable, frozen: trees of shapes that the stage's step reads.
      student: for the patches and the visual tokens of a tile; a teacher has as many.
    """
    places = {
        "decoder": tokens,
        "vision": tiles * student.vision.patches,
        "connector": tiles * student.tokens_per_tile,
    }

    def applied(path: str) -> int:
        return places.get(path.removeprefix("teacher/").split("/", 1)[0], 0)

    moving = sum(leaf.size * applied(path) for path, leaf in flatten(trainable).items())
    passed = sum(
        leaf.size * applied(path) * (1 + path.startswith("decoder/")) for path, leaf in flatten(frozen).items()
    )
    return float(stage.data.rows * (3 * moving + passed))


class TimeLeft:
    """Learns from the steps of this start of a run what the others will take."""

    def __init__(self, steps: Sequence[int], costs: Sequence[float]) -> None:
        """Knows nothing yet.

        Args:
          steps: of all stages.
          costs: of a step of each, in any unit; those of stages that are done are not looked at.
        """
        self._steps, self._costs = steps, costs
        self._stage = 0
        self._compiling = True
        self._first: list[float] = []
        self._recent: collections.deque[float] = collections.deque(maxlen=RECENT)
        self._seconds = self._cost = 0.0

    def begin(self, stage: int) -> None:
        """The next step is the first of stage number `stage`, or the first after it was continued."""
        self._stage, self._compiling = stage, True
        self._recent.clear()

    def add(self, seconds: float) -> None:
        """A step took so long."""
        if self._compiling:
            self._compiling = False
            self._first.append(seconds)
            return
        self._recent.append(seconds)
        self._seconds += seconds
        self._cost += self._costs[self._stage]

    def left(self, step: int) -> tuple[float, float] | None:
        """Seconds that the stage and the whole training will still take after `step`; None while nobody can know."""
        rate = self._seconds / self._cost if self._cost > 0 else None
        if len(self._recent) >= ENOUGH:
            each = sum(self._recent) / len(self._recent)
        elif rate is not None and self._seconds > sum(self._recent):  # a stage before has told
            each = rate * self._costs[self._stage]
        else:
            return None
        compiling = sum(self._first) / max(1, len(self._first))
        here = (self._steps[self._stage] - step) * each + self._compiling * compiling
        later = range(self._stage + 1, len(self._steps))
        return here, here + sum(self._steps[i] * self._costs[i] * (rate or 0.0) + compiling for i in later)
