"""One record of a data set, in any layout that the field writes, to turns and the names of its pictures.

    {"image": "a.jpg", "conversations": [{"from": "human", "value": "<image>\\n..."}, {"from": "gpt", "value": "..."}]}
    {"images": ["a.jpg"], "messages": [{"role": "user", "content": "<image>..."}, {"role": "assistant", ...}]}
    {"image": "a.jpg", "question": "...", "answer": "..."}
    {"images": ["a.jpg"], "texts": [{"user": "...", "assistant": "..."}]}

The first is LLaVA's and InternVL's (chat data format of InternVL's documentation), which ShareGPT's text has too; the
second is that of chat APIs, whose `content` may also be a list of parts; the others are layouts of data sets on the
Hugging Face hub, in which no mark says where a picture stands: it stands before the first question. Whatever is wrong
is an error that names the field; nothing is guessed.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from typing import Any, NamedTuple, NoReturn

from vlm_jax.data.conversation import IMAGE, Reason, RecordError, Role, Turn
from vlm_jax.data.formats.schema import SPEAKERS
from vlm_jax.data.text.render import frame_marks

ROLES: dict[str, Role] = {
    "system": "system",
    "human": "user",
    "gpt": "assistant",
    "user": "user",
    "assistant": "assistant",
}
"""Name of a speaker in any layout → role of the `Turn`."""

VIDEO = "<video>"
"""The mark in a user's text that the frames of a video take the place of."""

LAYOUTS = ("conversations", "messages", "texts", "question")
"""Fields that hold the turns, of which a record has one."""


class Record(NamedTuple):
    """What one record says.

    Attributes:
      turns: its messages.
      images: names of the image files that their marks stand for.
      video: name of the video that the `VIDEO` mark stands for, or ''.
      clip: the part of the video, in seconds from its beginning: start and end.
    """

    turns: tuple[Turn, ...]
    images: tuple[str, ...] = ()
    video: str = ""
    clip: tuple[float, float] | None = None


def parse(text: bytes, place: str) -> Record:
    """Reads one record.

    Args:
      text: JSON in UTF-8.
      place: what to call it in an error.

    Raises:
      RecordError: naming the field.
    """
    try:
        fields = json.loads(text.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        reason = "the line is empty" if not text.strip() else f"not valid JSON: {error}"
        raise RecordError(place, "json", " ".join(reason.split())) from None
    if not isinstance(fields, dict):
        raise RecordError(place, "type", f"must be a JSON object, got {_kind(fields)}")
    video, images = _video(fields, place), _images(fields, place)
    if video and images:
        bad(place, "video", "video", "a record of images and a video cannot be read")
    turns = read_turns(fields, place, len(images))
    marks = sum(turn.text.count(VIDEO) for turn in turns if turn.role == "user")
    if video and marks > 1:
        bad(place, "marks", "conversations", f"{marks} {VIDEO} mark(s) for 1 video")
    return Record(turns, images, video, _clip(fields.get("clip"), place) if video else None)


def with_frames(record: Record, frames: int) -> Record:
    """The record of a video with a mark for each of its frames in place of `VIDEO`, as InternVL's trainer writes them.

    Where the mark is missing they stand before the first question.
    """
    turns = list(record.turns)
    asked = [number for number, turn in enumerate(turns) if turn.role == "user"]
    number = next((number for number in asked if VIDEO in turns[number].text), asked[0])
    text, marks = turns[number].text, frame_marks(frames, training=True)
    turns[number] = Turn("user", text.replace(VIDEO, marks) if VIDEO in text else f"{marks}\n{text}")
    return record._replace(turns=tuple(turns))


def read_turns(fields: Mapping[str, Any], place: str, images: int) -> tuple[Turn, ...]:
    """The turns of a record in any of the `LAYOUTS`, as many of whose marks as there are images.

    Of a single image the mark may be missing: it then stands before the first question (`render.render`).

    Args:
      fields: of the record, as JSON gives them; what is None counts as missing.
      place: what to call the record in an error.
      images: how many it has.

    Raises:
      RecordError: naming the field.
    """
    given = [field for field in LAYOUTS if fields.get(field) is not None]
    if len(given) > 1:
        bad(place, "type", given[1], f"the turns are in {given[0]} already")
    field = given[0] if given else LAYOUTS[0]
    if field in ("conversations", "messages"):
        turns = _messages(fields.get(field), field, place)
    else:
        questions = _texts(fields["texts"], place) if field == "texts" else [_question(fields, place)]
        turns = [Turn(role, text) for pair in questions for role, text in zip(("user", "assistant"), pair, strict=True)]
        if images > 1 and turns and not any(IMAGE in turn.text for turn in turns):
            marks = "".join(f"Image-{number}: {IMAGE}\n" for number in range(1, images + 1))
            turns[0] = Turn("user", marks + turns[0].text)
    if (system := fields.get("system")) not in (None, ""):
        _check_text(system, place, "system")
        if turns and turns[0].role == "system":
            bad(place, "turns", "system", f"there is a system text in {field} already")
        turns = [Turn("system", system), *turns]
    marks = sum(turn.text.count(IMAGE) for turn in turns if turn.role == "user")
    if marks != images and not (images == 1 and not marks):
        bad(place, "marks", field, f"{marks} {IMAGE} mark(s) for {images} image(s)")
    return tuple(turns)


def _messages(messages: Any, field: str, place: str) -> list[Turn]:
    if not isinstance(messages, list):
        bad(place, "type", field, f"must be a list, got {_kind(messages)}")
    turns, speakers = [], []
    for number, message in enumerate(messages):
        name = f"{field}[{number}]"
        if not isinstance(message, dict):
            bad(place, "type", name, f"must be an object, got {_kind(message)}")
        of_chat = message.get("from") is None and message.get("role") is not None
        who, what = ("role", "content") if of_chat else ("from", "value")
        speaker, text = message.get(who), message.get(what)
        role = ROLES.get(speaker) if isinstance(speaker, str) else None
        if role is None:
            bad(place, "type", f"{name}.{who}", f"must be {', '.join(map(repr, ROLES))}, got {_shown(speaker)}")
        if of_chat and isinstance(text, list):
            text = _joined(text, place, f"{name}.{what}")
        _check_text(text, place, f"{name}.{what}")
        turns.append(Turn(role, text))
        speakers.append((f"{name}.{who}", f"{name}.{what}", speaker, of_chat))
    _check_order(turns, speakers, field, place)
    return turns


def _check_order(turns: list[Turn], speakers: list[tuple[str, str, str, bool]], field: str, place: str) -> None:
    """Questions and answers in turn, after a system text if there is one, and no answer empty."""
    first = 1 if turns and turns[0].role == "system" else 0
    for number, turn in enumerate(turns[first:], start=first):
        who, what, speaker, of_chat = speakers[number]
        expected: Role = "assistant" if (number - first) % 2 else "user"
        if turn.role != expected:
            name = expected if of_chat else SPEAKERS[expected]
            bad(place, "turns", who, f"expected {name!r}, got {speaker!r}")
        if turn.role == "assistant" and not turn.text.strip():
            bad(place, "empty answer", what, "the answer is empty")
    if len(turns) == first or turns[-1].role != "assistant":
        name = "assistant" if field == "messages" else SPEAKERS["assistant"]
        bad(place, "turns", field, f"the last turn must be an answer ({name!r})")


def _joined(parts: list[Any], place: str, field: str) -> str:
    """A chat API's list of parts as one text, as the chat templates of `jinja.to_jinja` write it."""
    text, images = "", 0
    for number, part in enumerate(parts):
        name = f"{field}[{number}]"
        kind = part.get("type") if isinstance(part, dict) else None
        if kind == "text":
            _check_text(part.get("text"), place, f"{name}.text")
            text += part["text"]
        elif kind in ("image", "video"):
            text += f"{IMAGE if kind == 'image' else VIDEO}\n"
            if part.get("index") not in (None, images):
                bad(place, "marks", f"{name}.index", f"must be {images}, as pictures stand in their order")
            images += kind == "image"
        else:
            found = _kind(part) if kind is None and not isinstance(part, dict) else _shown(kind)
            bad(place, "type", f"{name}.type", f"must be 'text', 'image' or 'video', got {found}")
    return text


def _texts(texts: Any, place: str) -> list[tuple[str, str]]:
    """Pairs of question and answer, as `the_cauldron` has them."""
    if not isinstance(texts, list) or not texts:
        bad(place, "type", "texts", f"must be a list of questions with answers, got {_shown(texts)}")
    for number, pair in enumerate(texts):
        if not isinstance(pair, dict):
            bad(place, "type", f"texts[{number}]", f"must be an object, got {_kind(pair)}")
        for side in ("user", "assistant"):
            _check_text(pair.get(side), place, f"texts[{number}].{side}")
        _check_answer(pair["assistant"], place, f"texts[{number}].assistant")
    return [(pair["user"], pair["assistant"]) for pair in texts]


def _question(fields: Mapping[str, Any], place: str) -> tuple[str, str]:
    """A question with its answer; of several answers the one that most people gave, the first of equals."""
    question = fields["question"]
    _check_text(question, place, "question")
    name = "answer" if fields.get("answer") is not None else "answers"
    answers = fields.get(name)
    if isinstance(answers, list):
        for number, answer in enumerate(answers):
            _check_text(answer, place, f"{name}[{number}]")
        if not answers:
            bad(place, "empty answer", name, "there is no answer")
        answers = Counter(answers).most_common(1)[0][0]
    _check_text(answers, place, name)
    _check_answer(answers, place, name)
    return question, answers


def _check_answer(answer: str, place: str, field: str) -> None:
    if not answer.strip():
        bad(place, "empty answer", field, "the answer is empty")


def _images(fields: Mapping[str, Any], place: str) -> tuple[str, ...]:
    given = [name for name in ("image", "images") if fields.get(name) not in (None, "", [])]
    if not given:
        return ()
    if len(given) > 1:
        bad(place, "type", "images", "the pictures are in image already")
    image = fields[given[0]]
    for number, name in enumerate(image if isinstance(image, list) else [image]):
        _check_text(name, place, f"{given[0]}[{number}]" if isinstance(image, list) else given[0])
    return tuple(image) if isinstance(image, list) else (image,)


def _video(fields: Mapping[str, Any], place: str) -> str:
    name = "video" if fields.get("video") not in (None, "", []) else "videos"
    video = fields.get(name)
    if video in (None, "", []):
        return ""
    if isinstance(video, list):
        if len(video) > 1:
            bad(place, "video", name, f"a record of {len(video)} videos cannot be read, only of one")
        video = video[0]
    _check_text(video, place, name)
    return video


def _clip(clip: Any, place: str) -> tuple[float, float] | None:
    if clip is None or clip in ({}, []):
        return None
    if not isinstance(clip, dict):
        bad(place, "type", "clip", f'must be {{"start": seconds, "end": seconds}}, got {_shown(clip)}')
    times = []
    for side in ("start", "end"):
        value = clip.get(side)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e9:
            bad(place, "type", f"clip.{side}", f"must be seconds, got {_shown(value)}")
        times.append(float(value))
    if times[0] >= times[1]:
        bad(place, "video", "clip", f"starts at {times[0]:g} and ends at {times[1]:g} seconds")
    return times[0], times[1]


def _check_text(text: Any, place: str, field: str) -> None:
    if not isinstance(text, str):
        bad(place, "type", field, f"must be text, got {_kind(text)}")
    try:
        text.encode()
    except UnicodeEncodeError:  # JSON can write half of a character
        bad(place, "type", field, f"is not valid Unicode: {_shown(text)}")


def bad(place: str, reason: Reason, field: str, problem: str) -> NoReturn:
    """Raises the error of a record's field.

    Raises:
      RecordError: always.
    """
    raise RecordError(place, reason, f"{field}: {problem}")


def _kind(value: Any) -> str:
    names = {dict: "an object", list: "a list", str: "text", bool: "a truth value", type(None): "nothing"}
    return names.get(type(value), "a number")


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
