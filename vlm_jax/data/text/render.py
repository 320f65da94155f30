"""`render` turns a conversation into spans of text, by a prompt format of `templates`.

Training masks come from the spans themselves: a span says whether it is supervised, its pieces are tokenised and the
ids and weights are concatenated. Nothing is tokenised twice to find out where an answer began.

What people write cannot forge the structure of a prompt. Only spans marked `control`, whose text comes from the
template, are searched for special tokens; the words of a user or of a data set are tokenised with that search turned
off, so that a typed `<|im_end|>` becomes the tokens of `<`, `|`, `im`, ... and not the end of the turn. Only the
mark-up of grounding (`<ref>`, `<box>`, `<quad>`) is part of what may be written.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vlm_jax.data.conversation import IMAGE, Role, Turn
from vlm_jax.data.text.templates import Template
from vlm_jax.errors import UserError


class Span(NamedTuple):
    """A piece of a rendered conversation.

    Attributes:
      text: its text; where an image stands, the token in whose places its visual tokens go.
      supervised: the model learns to write it.
      image: number of the image whose tokens stand here, or None.
      control: the text is the template's own, so special tokens in it are special.
      placeholders: number of tokens that stand for the image (0 for text).
      branch: number of the independent question that it belongs to, from 1; 0 is what all of them share.
      outside: it is one token and no part of the prompt's text: what follows is tokenised as the beginning of one.
    """

    text: str
    supervised: bool = False
    image: int | None = None
    control: bool = False
    placeholders: int = 0
    branch: int = 0
    outside: bool = False


def render(
    turns: Sequence[Turn],
    template: Template,
    placeholders: Sequence[int],
    *,
    open_turn: bool = False,
    independent: bool = False,
) -> list[Span]:
    r"""Renders a conversation.

    If there are images and no user turn holds an `<image>` mark, `<image>\n` is put before the first user turn. Marks
    in system or assistant text are plain text.

    Args:
      turns: an optional system turn, then user and assistant in turn. A system turn replaces the template's text.
      template: the prompt format.
      placeholders: number of tokens that stand for every image, in the order of the marks.
      open_turn: end with the open header of an answer, for generation; the last turn must be the user's.
      independent: every question with its answer is a branch of its own; all up to the last image of the first
        question is shared, and the white space behind that image stands before every other question too.

    Raises:
      UserError: roles out of order, not as many marks as images, a system text or several questions where the format
        has no place for them, a caption without an image, or independent questions of which one is not answered or has
        an image of its own, or whose images stand behind the first question's text.
    """
    system, dialogue = _split_system(turns, template)
    _check_roles(dialogue, open_turn)
    texts = [_strip(text, template) for text in _place_images(dialogue, len(placeholders), template, independent)]
    images = (_image_spans(number, count, template) for number, count in enumerate(placeholders))

    spans = [span for image in images for span in image] if template.images == "prompt" else []
    spans += [Span(template.bos, control=True, outside=True), Span(template.begin, control=True)]
    opening = [] if system is None else _system_spans(system, template)
    if not template.system_within:
        spans, opening = spans + opening, []
    if independent:
        spans += _branches(texts, template, images, opening, open_turn)
    else:
        for turn, text in zip(dialogue, texts, strict=True):
            spans += _turn(turn.role, text, template, images, opening)
            opening = []
    if open_turn:
        spans.append(Span(template.prefixes["assistant"], control=True))
    return [span for span in spans if span.text]


def _system_spans(text: str, template: Template) -> list[Span]:
    return [
        Span(template.prefixes["system"], control=True),
        Span(text),
        Span(template.closing("system"), control=True),
    ]


def _turn(
    role: Role, text: str, template: Template, images: Iterator[list[Span]], opening: Sequence[Span] = ()
) -> list[Span]:
    """The spans of one turn, with `opening` behind its prefix; takes the next images for the marks of a user's."""
    prefix = Span(template.prefixes[role], control=True)
    if role != "assistant":
        return [prefix, *opening, *_user_text(text, images), Span(template.closing(role), control=True)]
    return [
        prefix,
        Span(template.answer_lead, supervised=True, control=True),
        Span(text, supervised=True),
        Span(template.answer_tail + template.stop, supervised=True, control=True),
        Span(template.after_stop, control=True),
    ]


def _user_text(text: str, images: Iterator[list[Span]]) -> list[Span]:
    first, *others = text.split(IMAGE)
    spans = [Span(first)]
    for other in others:
        spans += [*next(images), Span(other)]
    return spans


def _branches(
    texts: Sequence[str],
    template: Template,
    images: Iterator[list[Span]],
    opening: Sequence[Span],
    open_turn: bool,
) -> list[Span]:
    """The user's header with the images, then every question with its answer as a branch."""
    if open_turn or len(texts) % 2:
        raise UserError("independent questions must all be answered")
    if any(IMAGE in text for text in texts[2::2]):
        raise UserError("independent questions share the images of the first; a later one has an image of its own")
    head, mark, first = texts[0].rpartition(IMAGE)
    if mark and not first.strip() and not template.captions:
        raise UserError("independent questions: the images must stand before the first question's text")
    gap = first[: len(first) - len(first.lstrip())] if mark else ""
    questions = [first, *(gap + text for text in texts[2::2])]
    spans = [Span(template.prefixes["user"], control=True), *opening, *_user_text(head + mark, images)]
    for branch, (question, answer) in enumerate(zip(questions, texts[1::2], strict=True), start=1):
        closing = Span(template.closing("user"), control=True)
        own = [Span(question), closing, *_turn("assistant", answer, template, images)]
        spans += [span._replace(branch=branch) for span in own]
    return spans


def frame_marks(frames: int, training: bool = False) -> str:
    r"""The text that stands for a video of so many frames: a line with a mark for each, `Frame1: <image>\nFrame2: ...`.

    It ends without a newline. InternVL's trainer writes `Frame-1: <image>` (`video_get_item` in
    `internvl/train/internvl_chat_finetune.py`); its paper and model cards, and the processor of `transformers`, ask
    with `Frame1: <image>`. A frame is one tile: prepare it with a `max_tiles` of 1.
    """
    dash = "-" if training else ""
    return "\n".join(f"Frame{dash}{number}: {IMAGE}" for number in range(1, frames + 1))


def _split_system(turns: Sequence[Turn], template: Template) -> tuple[str | None, Sequence[Turn]]:
    if turns and turns[0].role == "system":
        if "system" not in template.prefixes:
            raise UserError(f"the prompt format '{template.name}' has no place for a system text")
        return _strip(turns[0].text, template), turns[1:]
    return template.system, turns


def _check_roles(dialogue: Sequence[Turn], open_turn: bool) -> None:
    for number, turn in enumerate(dialogue):
        expected = "assistant" if number % 2 else "user"
        if turn.role != expected:
            raise UserError(f"turn {number + 1} after the system text must be the {expected}'s, got '{turn.role}'")
    if not dialogue:
        raise UserError("the conversation has no turns")
    if open_turn and dialogue[-1].role != "user":
        raise UserError("nothing to answer: the last turn must be the user's")


def _place_images(dialogue: Sequence[Turn], images: int, template: Template, independent: bool) -> list[str]:
    """The turns' texts with their marks where the format has them; one is put before the first text if none has any."""
    texts = [turn.text for turn in dialogue]
    marks = sum(turn.text.count(IMAGE) for turn in dialogue if turn.role == "user")
    if images and not marks:
        texts[0] = f"{IMAGE}\n{texts[0]}"
        marks = 1
    if marks != images:
        raise UserError(f"the text has {marks} {IMAGE} mark(s) for {images} image(s)")
    if template.captions and (not images or (len(dialogue) > 2 and not independent)):
        found = "no image" if not images else f"{(len(dialogue) + 1) // 2} questions"
        raise UserError(f"the prompt format '{template.name}' is a caption behind its images; there are {found}")
    return [
        _placed(text, template) if turn.role == "user" else text for turn, text in zip(dialogue, texts, strict=True)
    ]


def _placed(text: str, template: Template) -> str:
    marks = text.count(IMAGE)
    if template.captions:
        return IMAGE * marks
    if template.images == "prompt" and marks:
        return text.replace(IMAGE, "").strip()
    if template.images == "turn" and marks == 1:
        return f"{IMAGE}\n{text.replace(IMAGE, '').strip()}".strip()
    return text


def _image_spans(image: int, placeholders: int, template: Template) -> list[Span]:
    return [
        Span(template.image_start, control=True),
        Span(template.image_context, image=image, control=True, placeholders=placeholders),
        Span(template.image_end, control=True),
    ]


def _strip(text: str, template: Template) -> str:
    return text.strip() if template.strip else text
