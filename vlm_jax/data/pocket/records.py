"""One record of the data set as a pure function of (seed, split, task, number)."""

from __future__ import annotations

import dataclasses
import io
from typing import Any

import numpy as np

from vlm_jax.data.conversation import IMAGE, Conversation, Turn
from vlm_jax.data.pocket import charts, digits, documents, photos, points
from vlm_jax.data.pocket.material import Material
from vlm_jax.data.pocket.scene import CURRICULUM, SPLITS, TASKS, Question, Scene

TRANSCRIBED_ALONE, TRANSCRIBED_LAST = 0.5, 0.15
"""Shares of the training conversations that are the transcription of the whole picture, or end with it."""


@dataclasses.dataclass(frozen=True)
class Record:
    """A conversation, what its picture was made from, and the kind of question that it was drawn for."""

    conversation: Conversation
    provenance: dict[str, Any]
    kind: str


def make_record(seed: int, split: str, task: str, number: int, material: Material) -> Record:
    """Draws record `number` of a task in a split.

    Args:
      seed: of the whole data set.
      split: `train` gives several turns; `validation` and `test` one question, whose answer is the gold answer.
      task: one of `TASKS`, or of `CURRICULUM` in `train`.
      number: from 0. Kinds of questions take turns.
      material: of this split.
    """
    rng = np.random.default_rng([seed, 1 + SPLITS.index(split), (*TASKS, *CURRICULUM).index(task), number])
    scene, kind = draw_scene(rng, material, task, number)
    if task in CURRICULUM:
        questions = [scene.transcription]
    else:
        questions = _training_questions(rng, scene) if split == "train" else list(scene.questions[:1])
    turns = []
    for position, question in enumerate(questions):
        turns += [Turn("user", (IMAGE + "\n" if position == 0 else "") + question.text)]
        turns += [Turn("assistant", question.answer)]
    encoded = io.BytesIO()
    scene.image.save(encoded, "png")
    conversation = Conversation(tuple(turns), (encoded.getvalue(),), f"{split}-{task}-{number:05d}", task)
    return Record(conversation, scene.provenance, kind)


def draw_scene(rng: np.random.Generator, material: Material, task: str, number: int) -> tuple[Scene, str]:
    """The picture of a record and the kind of question that it was drawn for (which is its first question)."""
    if task in CURRICULUM:
        return digits.draw_digits(rng, material, layouts=digits.READING_LAYOUTS), digits.KINDS[0]
    kinds = {
        "digits": digits.KINDS,
        "count": digits.COUNT_KINDS,
        "document": documents.KINDS,
        "chart": charts.KINDS,
        "point": points.KINDS,
        "photo": photos.KINDS,
    }[task]
    ask = kinds[number % len(kinds)]
    if task == "photo":
        return photos.draw_photo(rng, material, ask, number), ask
    draw = {
        "digits": digits.draw_digits,
        "count": digits.draw_count,
        "document": documents.draw_document,
        "chart": charts.draw_chart,
        "point": points.draw_point,
    }[task]
    return draw(rng, material, ask), ask


MOST_BOXES = 3
"""A list of more things than this, with their boxes, is not asked for."""


def _training_questions(rng: np.random.Generator, scene: Scene) -> list[Question]:
    """The transcription alone, questions alone, or both.

    Alone, right behind the picture, the transcription is what a small model learns to read from: each word of it has a
    place of its own at a fixed distance from the picture. Of both, the transcription comes last: an answer before it
    has to be found in the picture, one after it could be copied from the text. The question that the picture was drawn
    for is always among the questions. Boxes are long (20 tokens each): there are at most two questions after them, and
    never a list beside, so that every conversation stays within 256 tokens and rows can be short.
    """
    kind = rng.random()
    boxes = scene.transcription.answer.count("<box>")
    if kind < TRANSCRIBED_ALONE and boxes <= MOST_BOXES:
        return [scene.transcription]
    count = int(rng.integers(1, 3)) if boxes else int(rng.integers(2, 5))
    first, *others = scene.questions
    chosen = [first] + [others[k] for k in rng.permutation(len(others))[: count - 1]]
    chosen = [chosen[k] for k in rng.permutation(len(chosen))]
    return [*chosen, scene.transcription] if kind < TRANSCRIBED_ALONE + TRANSCRIBED_LAST and not boxes else chosen
