r"""Questions about pictures as conversations: those about one picture are merged, as in LLaVA-1.5's mixture.

Merged, a picture is encoded once for all its questions (arXiv 2310.03744, appendix A.2). A record is what `records.py`
reads: `{"id", "image", "conversations": [{"from": "human", "value": "<image>\n..."}, {"from": "gpt", ...}]}`.
"""

from __future__ import annotations

import hashlib
import string
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vlm_jax.data.conversation import IMAGE
from vlm_jax.data.recipes.fields import get, objects
from vlm_jax.data.recipes.response_formats import OPTION_LETTER, SHORT_ANSWER, ResponseFormat, with_options
from vlm_jax.errors import UserError

Record = dict[str, Any]


class Question(NamedTuple):
    """A question about a picture.

    Attributes:
      image: name of the image file.
      text: the question, without the mark of the picture and without what is said about the answer's form.
      answer: the answer.
      form: what is said about its form, if anything.
    """

    image: str
    text: str
    answer: str
    form: ResponseFormat | None = None


def merged(
    questions: Iterable[Question],
    *,
    seed: int | None = None,
    max_turns: int = 0,
    max_tokens: int = 0,
    tokens: Callable[[str], int] = lambda text: len(text.split()),
    always: bool = False,
) -> list[Record]:
    """One record for the questions about each picture, in the order in which pictures come first.

    Args:
      questions: of any pictures.
      seed: shuffles the questions about each picture, whatever others there are; None keeps their order.
      max_turns: questions of a record at most (LLaVA-1.5 cuts RefCOCO's into fewer than 10); 0 is no limit, 1 makes
        records of one turn.
      max_tokens: of a record's questions and answers together; 0 is no limit. A question that is longer alone has a
        record of its own.
      tokens: counts them; words, if nothing else is given.
      always: every question says the form of its answer, also where the format says it once.

    Returns:
      Records whose `id` is the picture's name, numbered where a picture has several.

    Raises:
      UserError: a question or an answer is empty, or a question has a mark of a picture.
    """
    by_image: dict[str, list[Question]] = {}
    for question in questions:
        _check(question)
        by_image.setdefault(question.image, []).append(question)
    records = []
    for image, asked in by_image.items():
        parts = list(_parts(_shuffled(asked, image, seed), max_turns, max_tokens, tokens, always))
        for number, part in enumerate(parts, start=1):
            records.append(_record(image if len(parts) == 1 else f"{image}#{number}", image, part))
    return records


def option_question(image: str, text: str, options: Sequence[str], right: int) -> Question:
    """A question of multiple choice, answered with its letter.

    Raises:
      UserError: `right` is not the number of an option, or there are too few or too many.
    """
    if not 0 <= right < len(options):
        raise UserError(f"right: must be the number of one of {len(options)} options from 0, got {right}")
    return Question(image, with_options(text, options), string.ascii_uppercase[right], OPTION_LETTER)


def rotated_questions(image: str, text: str, options: Sequence[str], right: int) -> list[Question]:
    """A question of multiple choice as often as it has options, each time turned on by one.

    So LLaVA-1.5 makes up for how few such questions A-OKVQA has; and every letter is right once.
    """
    turned = [tuple(options[turn:]) + tuple(options[:turn]) for turn in range(len(options))]
    return [option_question(image, text, some, (right - turn) % len(some)) for turn, some in enumerate(turned)]


def vqa_questions(
    questions: Mapping[str, Any], annotations: Mapping[str, Any], name: str = "COCO_train2014_{:012d}.jpg"
) -> list[Question]:
    """The questions of VQAv2 with their most frequent answers, in the order of the file (visualqa.org, "Data format").

    Args:
      questions: content of a file such as `v2_OpenEnded_mscoco_train2014_questions.json`.
      annotations: of one such as `v2_mscoco_train2014_annotations.json`.
      name: of an image file, with a place for `image_id`.

    Raises:
      UserError: a field is missing or of a wrong type, or a question has no annotation.
    """
    answers = {
        get(annotation, "question_id", int, place): get(annotation, "multiple_choice_answer", str, place)
        for place, annotation in objects(annotations, "annotations")
    }
    found = []
    for place, question in objects(questions, "questions"):
        number = get(question, "question_id", int, place)
        if number not in answers:
            raise UserError(f"{place}.question_id: there is no annotation of question {number}")
        image = name.format(get(question, "image_id", int, place))
        found.append(Question(image, get(question, "question", str, place), answers[number], SHORT_ANSWER))
    return found


def caption_records(pairs: Iterable[tuple[str, str]], instruction: str = "") -> list[Record]:
    """Pictures and captions as records of the first stage, one for each pair.

    Args:
      pairs: name of the image file, caption.
      instruction: what is asked; the prompt format `plain` leaves it out anyway.
    """
    pairs = [(image, " ".join(caption.split())) for image, caption in pairs]
    several, seen, records = Counter(image for image, _ in pairs), Counter[str](), []
    for image, caption in pairs:
        if not caption:
            raise UserError(f"{image}: the caption is empty")
        seen[image] += 1
        id_ = image if several[image] == 1 else f"{image}#{seen[image]}"
        records.append(_record(id_, image, [(instruction, caption)]))
    return records


def coco_captions(content: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Image file and caption of every annotation of COCO (`captions_train2017.json`), in the order of the file.

    Raises:
      UserError: a field is missing or of a wrong type, or an annotation names an image that is not there.
    """
    names = {
        get(image, "id", int, place): get(image, "file_name", str, place) for place, image in objects(content, "images")
    }
    pairs = []
    for place, annotation in objects(content, "annotations"):
        number = get(annotation, "image_id", int, place)
        if number not in names:
            raise UserError(f"{place}.image_id: there is no image {number}")
        pairs.append((names[number], get(annotation, "caption", str, place)))
    return pairs


def _check(question: Question) -> None:
    for field in ("text", "answer"):
        if not getattr(question, field).strip():
            raise UserError(f"{question.image}: a question's {field} is empty")
    if IMAGE in question.text:
        raise UserError(f"{question.image}: the question '{question.text}' has a mark of a picture; it gets its own")


def _shuffled(questions: list[Question], image: str, seed: int | None) -> list[Question]:
    if seed is None:
        return questions
    own = int.from_bytes(hashlib.sha256(image.encode()).digest()[:8], "little")
    return [questions[number] for number in np.random.default_rng([seed, own]).permutation(len(questions))]


def _parts(
    questions: Sequence[Question], max_turns: int, max_tokens: int, tokens: Callable[[str], int], always: bool
) -> Iterator[list[tuple[str, str]]]:
    """The turns of every record about one picture."""
    part: list[tuple[str, str]] = []
    said: set[ResponseFormat] = set()
    used = 0
    for question in questions:
        turn = _turn(question, said, always)
        size = sum(map(tokens, turn))
        if part and ((max_turns and len(part) == max_turns) or (max_tokens and used + size > max_tokens)):
            yield part
            part, said, used = [], set(), 0
            turn = _turn(question, said, always)
            size = sum(map(tokens, turn))
        part.append(turn)
        said |= {question.form} if question.form else set()
        used += size
    yield part


def _turn(question: Question, said: set[ResponseFormat], always: bool) -> tuple[str, str]:
    form = question.form
    if form is None or (form.once and form in said and not always):
        return question.text, question.answer
    return f"{question.text}\n{form.prompt}", question.answer


def _record(id_: str, image: str, turns: Sequence[tuple[str, str]]) -> Record:
    conversations = []
    for number, (asked, answered) in enumerate(turns):
        mark = "" if number else f"{IMAGE}\n" if asked else IMAGE
        conversations += [{"from": "human", "value": mark + asked}, {"from": "gpt", "value": answered}]
    return {"id": id_, "image": image, "conversations": conversations}
