"""One record of the data set as a pure function of (seed, split, task, number)."""

from __future__ import annotations

import dataclasses
import io
from collections.abc import Callable
from typing import Any

import numpy as np

from vlm_jax.data.conversation import IMAGE, Conversation, Turn
from vlm_jax.data.pocket import charts, digits, documents, photos, points
from vlm_jax.data.pocket.canvas import ONE_TILE
from vlm_jax.data.pocket.material import Material
from vlm_jax.data.pocket.scene import CURRICULUM, SPLITS, TASKS, Question, Scene

INDEPENDENT = 0.9
"""Share of the training conversations whose questions are independent; the others are answered one after another."""

LOOKING = ("count", "document", "chart", "point", "photo")
"""Tasks that take turns in `looking`."""


@dataclasses.dataclass(frozen=True)
class Record:
    """A conversation, what its picture was made from, and the kind of question that it was drawn for."""

    conversation: Conversation
    provenance: dict[str, Any]
    kind: str


def make_record(seed: int, split: str, task: str, number: int, material: Material, hard: bool = False) -> Record:
    """Draws record `number` of a task in a split.

    Args:
      seed: of the whole data set.
      split: `train` asks everything about a picture, or leads a dialogue; `validation` and `test` ask one question,
        whose answer is the gold answer.
      task: one of `TASKS`, or of `CURRICULUM` in `train`.
      number: from 0. Kinds of questions take turns.
      material: of this split.
      hard: in `train` what is hard is asked more often, which takes long to be learned (`Preset.hard`).
    """
    rng = np.random.default_rng([seed, 1 + SPLITS.index(split), (*TASKS, *CURRICULUM).index(task), number])
    scene, kind = draw_scene(rng, material, task, number, hard=hard and split == "train")
    independent = split == "train" and (task in CURRICULUM or rng.random() < INDEPENDENT)
    if split != "train":
        questions = [scene.questions[0]]
    elif task == "reading":
        questions = [scene.transcription]
    elif independent:
        questions = _everything(scene)
    else:
        questions = _in_turn(rng, scene)
    turns = []
    for position, question in enumerate(questions):
        turns += [Turn("user", (IMAGE + "\n" if position == 0 else "") + question.text)]
        turns += [Turn("assistant", question.answer)]
    encoded = io.BytesIO()
    scene.image.save(encoded, "png")
    name = f"{split}-{task}-{number:05d}"
    conversation = Conversation(tuple(turns), (encoded.getvalue(),), name, task, independent=independent)
    return Record(conversation, scene.provenance, kind)


def draw_scene(
    rng: np.random.Generator, material: Material, task: str, number: int, hard: bool = False
) -> tuple[Scene, str]:
    """The picture of a record and the kind of question that it was drawn for (which is its first question)."""
    if task in ("reading", "finding", "searching"):
        ask = "search" if task == "searching" else digits.KINDS[0]
        return digits.draw_digits(rng, material, ask, digits.ONE_LAYOUT), digits.KINDS[0]
    layouts: dict[str, Any] = {}
    if task == "looking":
        number, turn = divmod(number, len(LOOKING))
        task = LOOKING[turn]
        layouts["layouts"] = digits.ONE_TILE_COUNTS if task == "count" else ONE_TILE
    kinds, draw = _DRAWING[task]
    if hard:
        kinds = _HARD.get(task, kinds)
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

_HARD = {
    "count": digits.HARD_COUNT_KINDS,
    "document": documents.HARD_KINDS,
    "chart": charts.HARD_KINDS,
    "point": points.HARD_KINDS,
}
"""Task -> the kinds that take turns where what is hard comes more often."""


def _everything(scene: Scene) -> list[Question]:
    """All questions, each right behind the picture: there the answer is at a fixed distance from what it is about, and
    that is how a small model learns to look. The transcription is one of them; a long list of boxes is not.
    """
    boxes = scene.transcription.answer.count("<box>")
    return [*scene.questions, *([scene.transcription] if boxes <= 1 else [])]


def _in_turn(rng: np.random.Generator, scene: Scene) -> list[Question]:
    """One to four questions of a dialogue, the one that the picture was drawn for among them.

    In half of those without boxes the transcription comes last: an answer before it has to be found in the picture, one
    after it could be copied from the text.
    """
    first, *others = scene.questions
    boxes = scene.transcription.answer.count("<box>")
    if boxes == 1:  # a second question would be after the same thing
        return [first]
    count = 2 if boxes else int(rng.integers(2, 5))
    chosen = [first] + [others[k] for k in rng.permutation(len(others))[: count - 1]]
    chosen = [chosen[k] for k in rng.permutation(len(chosen))]
    return [*chosen, scene.transcription] if not boxes and rng.random() < 0.5 else chosen
