"""One record of the data set as a pure function of (seed, split, task, number)."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import numpy as np

from vlm_jax.data.conversation import IMAGE, Conversation, Turn
from vlm_jax.data.pocket import charts, digits, documents, photos, points
from vlm_jax.data.pocket.canvas import ONE_TILE, choose
from vlm_jax.data.pocket.material import Material
from vlm_jax.data.pocket.scene import CURRICULUM, SPLITS, TASKS, Question, Scene

TRANSCRIBED, ASKED_ONCE, ASKED_AND_TRANSCRIBED = 0.4, 0.35, 0.1
"""Shares of the training conversations that are the transcription of the whole picture, one question, or several with
the transcription at the end; the others are several questions."""

LOOKING = {
    "count": ("number",),
    "document": ("field", "total"),
    "chart": ("highest", "compare", "lowest"),
    "point": ("thing", "line"),
    "photo": ("name",),
}
"""Tasks that take turns in `looking`, and the kinds of questions that their pictures are drawn for."""

MOST_BOXES = 3
"""A list of more things than this, with their boxes, is not asked for."""


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
      split: `train` gives a transcription, one question or several; `validation` and `test` one question, whose answer
        is the gold answer.
      task: one of `TASKS`, or of `CURRICULUM` in `train`.
      number: from 0. Kinds of questions take turns.
      material: of this split.
    """
    rng = np.random.default_rng([seed, 1 + SPLITS.index(split), (*TASKS, *CURRICULUM).index(task), number])
    scene, kind = draw_scene(rng, material, task, number)
    if split != "train":
        questions = list(scene.questions[:1])
    elif task == "reading":
        questions = [scene.transcription]
    elif task == "finding":
        questions = [_any_kind(rng, scene)]
    elif task == "looking":
        questions = _looking_questions(rng, scene, kind)
    else:
        questions = _training_questions(rng, scene)
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
    if task in ("reading", "finding"):
        return digits.draw_digits(rng, material, layouts=digits.ONE_LAYOUT), digits.KINDS[0]
    layouts: dict[str, Any] = {}
    if task == "looking":
        number, turn = divmod(number, len(LOOKING))
        task, kinds = list(LOOKING.items())[turn]
        draw = _DRAWING[task][1]
        layouts["layouts"] = digits.ONE_TILE_COUNTS if task == "count" else ONE_TILE
    else:
        kinds, draw = _DRAWING[task]
    ask = kinds[number % len(kinds)]
    if task == "photo":
        layouts["number"] = number
    return draw(rng, material, ask, **layouts), ask


_DRAWING: dict[str, tuple[tuple[str, ...], Callable[..., Scene]]] = {
    "digits": (digits.KINDS, digits.draw_digits),
    "count": (digits.COUNT_KINDS, digits.draw_count),
    "document": (documents.KINDS, documents.draw_document),
    "chart": (charts.KINDS, charts.draw_chart),
    "point": (points.KINDS, points.draw_point),
    "photo": (photos.KINDS, photos.draw_photo),
}
"""Task -> its kinds of questions, which take turns, and what draws a picture for one."""


def _training_questions(rng: np.random.Generator, scene: Scene) -> list[Question]:
    """The transcription alone, one question, several, or several and the transcription.

    Right behind the picture everything that is asked for is at a fixed distance from the answer, and that is how a
    small model learns to look. Behind other questions the distances vary, so those conversations are the fewer. There
    the transcription comes last: an answer before it has to be found in the picture, one after it could be copied from
    the text. Boxes are long (20 tokens each): there are at most two questions after them, and never a list beside, so
    that every conversation stays within 256 tokens and rows can be short.
    """
    kind = rng.random()
    boxes = scene.transcription.answer.count("<box>")
    if kind < TRANSCRIBED and boxes <= MOST_BOXES:
        return [scene.transcription]
    if kind < TRANSCRIBED + ASKED_ONCE:
        return [_any_kind(rng, scene)]
    if boxes == 1:  # a second question would be after the same thing
        return [_any_kind(rng, scene)]
    count = 2 if boxes else int(rng.integers(2, 5))
    first, *others = scene.questions
    chosen = [first] + [others[k] for k in rng.permutation(len(others))[: count - 1]]
    chosen = [chosen[k] for k in rng.permutation(len(chosen))]
    last = kind < TRANSCRIBED + ASKED_ONCE + ASKED_AND_TRANSCRIBED and not boxes
    return [*chosen, scene.transcription] if last else chosen


def _looking_questions(rng: np.random.Generator, scene: Scene, kind: str) -> list[Question]:
    """All comparisons of a chart or lines of a document in any order: one look answers them. Else one question."""
    if kind in LOOKING["chart"]:
        asked = [question for question in scene.questions if question.kind in LOOKING["chart"]]
    elif kind in LOOKING["document"]:
        asked = list(scene.questions)
    else:
        return list(scene.questions[:1])
    return [asked[k] for k in rng.permutation(len(asked))]


def _any_kind(rng: np.random.Generator, scene: Scene) -> Question:
    """In half of the cases the question that the picture was drawn for, as in the test; else one of any kind."""
    if rng.random() < 0.5:
        return scene.questions[0]
    kinds = sorted({question.kind for question in scene.questions})
    kind = choose(rng, kinds)
    return next(question for question in scene.questions if question.kind == kind)
