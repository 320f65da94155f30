"""Looks at a model in training from outside: what it answers to a few questions of the validation split.

Training knows neither generation nor metrics; it is handed a function that asks (`vlm_jax.ask`).
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

import jax

from vlm_jax.errors import UserError
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.training.log import Log, say
from vlm_jax.training.objectives import Models
from vlm_jax.training.pictures import Example
from vlm_jax.training.recipe import Stage


class Answers(NamedTuple):
    """What came of asking.

    Attributes:
      scores: mean score of each task, in [0, 1].
      examples: all questions, always the same in the same order.
    """

    scores: Mapping[str, float]
    examples: tuple[Example, ...]

    @property
    def mean(self) -> float:
        """Over the tasks, each counting as much as the others."""
        return sum(self.scores.values()) / len(self.scores)


class Ask(Protocol):
    """Asks a model the validation questions.

    Attributes:
      count: how many there are.
    """

    count: int

    def __call__(self, config: VLMConfig, params: Mapping[str, Any]) -> Answers:
        """The answers of the model `config` with `params`, of which nothing is kept and nothing changed.

        Raises:
          UserError: a picture is gone, ...
        """
        ...


class Watch:
    """Has the questions asked when it is time, once, and records what was answered."""

    def __init__(self, ask: Ask | None, every: int, log: Log) -> None:
        """Has `ask` called at the end of stages, and every `every` steps (0 is never); None is never called."""
        self._ask, self._every, self._log = ask, every, log

    def due(self, stage: Stage, step: int, number: int) -> bool:
        """Whether to ask after `step` of a stage, global step `number`: it is time, and nobody has.

        What was asked is to be found in the log alone: it is true whether a run was cut off before or after.
        """
        inside = self._every > 0 and step > 0 and step % self._every == 0
        return (
            self._ask is not None
            and stage.objective.speaker is not None
            and (inside or step == stage.steps)
            and not self._log.asked(number)
        )

    @property
    def doing(self) -> str:
        """What is going on meanwhile."""
        return f"asking {self._ask.count if self._ask else 0} validation questions"

    def ask(self, stage: Stage, models: Models, params: Mapping[str, Any], step: int, number: int) -> None:
        """Asks, and says and records what came of it; what cannot be asked is no reason to end a training."""
        speaker, began = stage.objective.speaker, time.monotonic()
        assert self._ask is not None
        assert speaker is not None
        try:
            answers = self._ask(*models.vlm(speaker, params))
        except (UserError, jax.errors.JaxRuntimeError) as error:
            if not isinstance(error, UserError) and "RESOURCE_EXHAUSTED" not in str(error):
                raise
            reason = error if isinstance(error, UserError) else "the device lacks the memory, beside what trains"
            say(f"stage {stage.name}: the validation questions were not asked: {reason}")
            return
        seconds = time.monotonic() - began
        self._log.validation(number, speaker, answers.scores, answers.mean, answers.examples, seconds)
        tasks = ", ".join(f"{task} {score:.0%}" for task, score in sorted(answers.scores.items()))
        who = "the teacher gets" if speaker == "teacher" else "the model gets"
        say(
            f"{stage.name}, step {step}: {who} {answers.mean:.0%} on {self._ask.count} validation questions: {tasks} "
            f"({seconds:.1f} s)"
        )
