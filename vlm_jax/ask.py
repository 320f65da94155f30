"""Asks a model in training a few questions of the validation split, the same ones whenever it is asked."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from vlm_jax.data.conversation import Conversation
from vlm_jax.data.sources import Source
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.errors import UserError
from vlm_jax.evaluation.benchmarks import Benchmark, questions, single_question
from vlm_jax.evaluation.runner import evaluate
from vlm_jax.inference.model import Model
from vlm_jax.models.vlm import VLMConfig
from vlm_jax.training.pictures import Example
from vlm_jax.training.recipe import Recipe
from vlm_jax.training.watch import Answers

LOOKED_AT = 50
"""Validation records that are looked at for every question that each task may have: more of a large split would take
long, and a task that is rarer than one in so many may get fewer questions."""


class Questions:
    """A few questions of the validation split, and how to ask them (see `training.watch.Ask`)."""

    def __init__(self, recipe: Recipe, benchmark: Benchmark, tokenizer: Tokenizer) -> None:
        self._recipe, self._benchmark, self._tokenizer = recipe, benchmark, tokenizer
        self.count = len(benchmark.questions)

    def __call__(self, config: VLMConfig, params: Mapping[str, Any]) -> Answers:
        """Asks them all at once. A model of the same shape compiles nothing the second time."""
        settings = self._recipe.evaluation
        system = self._recipe.system
        if config.vision.image_size != system.model.vision.image_size:  # a stage's own
            system = system.resized(config.vision.image_size)
        system = dataclasses.replace(system, model=config)
        model = Model(system, on_one_cpu(params), self._tokenizer)
        result = evaluate(
            lambda conversations: model.answer(conversations, settings.max_new_tokens, settings.batch_size),
            self._benchmark,
            controls=(),
            chunk_size=self.count,
            seed=self._recipe.seed,
        )
        pictures = {question.id: question.conversation.images for question in self._benchmark.questions}
        examples = (
            Example(
                row["task"], row["question"], row["answers"][0], row["prediction"], row["score"], pictures[row["id"]]
            )
            for row in result.rows
        )
        return Answers({task: score.value for task, score in result.tasks.items()}, tuple(examples))


def validation_questions(recipe: Recipe, validation: Source | None, tokenizer: Tokenizer) -> Questions | None:
    """The questions, drawn by the recipe's seed; None where none are wanted or the data has none.

    None for several hosts, too: a model that lies on all of them would have to be asked by all of them at once.
    """
    if validation is None or not recipe.evaluation.watch or jax.process_count() > 1:
        return None
    usable = list(_usable(recipe, validation, tokenizer))
    return Questions(recipe, questions(usable), tokenizer) if usable else None


def on_one_cpu(params: Any) -> Any:
    """Parameters on one device where devices are simulated: all of them would compute the same answers."""
    return jax.device_put(params, jax.local_devices()[0]) if jax.default_backend() == "cpu" else params


def _usable(recipe: Recipe, validation: Source, tokenizer: Tokenizer) -> Iterator[Conversation]:
    """Of each task so many records that are one question, whose pictures can be read, with room for an answer.

    No others are kept, because pictures are large.
    """
    assert recipe.system is not None
    per_task, found = recipe.evaluation.watch, collections.Counter()
    room = recipe.system.model.decoder.context
    preparer = recipe.system.preparer(tokenizer, room)
    generator, ids = np.random.default_rng(recipe.seed), set()
    for number in generator.permutation(len(validation))[: LOOKED_AT * per_task]:
        try:
            record = validation[int(number)]
            question = single_question(record)
            if question is None or question.id in ids or found[question.task] == per_task:
                continue
            if len(preparer(question.conversation, open_turn=True).tokens) >= room:
                continue
        except UserError:  # it will not be asked; nothing depends on it
            continue
        ids.add(question.id)
        found[question.task] += 1
        yield record
