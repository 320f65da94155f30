"""Chat templates as data, and `render`, which turns a conversation into spans of text.

Training masks come from the spans themselves: a span says whether it is supervised, its pieces are tokenised and the
ids and weights are concatenated. Nothing is tokenised twice to find out where an answer began.

What people write cannot forge the structure of a prompt. Only spans marked `control`, whose text comes from the
template, are searched for special tokens; the words of a user or of a data set are tokenised with that search turned
off, so that a typed `<|im_end|>` becomes the tokens of `<`, `|`, `im`, ... and not the end of the turn. Only the
mark-up of grounding (`<ref>`, `<box>`, `<quad>`) is part of what may be written.

Source: `internvl/conversation.py` and `train/dataset.py` of OpenGVLab/InternVL.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from vlm_jax.data.conversation import IMAGE, Role, Turn
from vlm_jax.errors import UserError

IMAGE_START, IMAGE_END, IMAGE_CONTEXT = "<img>", "</img>", "<IMG_CONTEXT>"


@dataclasses.dataclass(frozen=True, kw_only=True)
class Template:
    """A prompt format. A turn is rendered as its role's prefix, the text, `stop`, `after_stop`.

    Attributes:
      name: key in `TEMPLATES`.
      system: system text where the conversation brings none.
      prefixes: what opens a turn, by role.
      stop: the token that ends a turn; generation stops at it, and it is supervised in answers.
      after_stop: what follows the stop token; never supervised.
      begin: what opens the whole prompt (a bos token, and what the reference's tokenizer puts behind it).
      strip: white space around every message is removed.
    """

    name: str
    system: str
    prefixes: dict[Role, str]
    stop: str
    after_stop: str = ""
    begin: str = ""
    strip: bool = False

    @property
    def control(self) -> tuple[str, ...]:
        """The tokens that open and end turns."""
        return tuple(dict.fromkeys(re.findall(r"<\|\w+\|>", "".join((*self.prefixes.values(), self.stop)))))


class Span(NamedTuple):
    """A piece of a rendered conversation.

    Attributes:
      text: its text; empty where an image stands.
      supervised: the model learns to write it.
      image: number of the image whose visual tokens stand here, or None.
      control: the text is the template's own, so special tokens in it are special.
      placeholders: number of visual tokens, tiles * tokens per tile (0 for text).
      branch: number of the independent question that it belongs to, from 1; 0 is what all of them share.
    """

    text: str
    supervised: bool = False
    image: int | None = None
    control: bool = False
    placeholders: int = 0
    branch: int = 0


def render(
    turns: Sequence[Turn],
    template: Template,
    tiles_per_image: Sequence[int],
    tokens_per_tile: int,
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
      tiles_per_image: number of tiles of every image, in the order of the marks.
      tokens_per_tile: number of visual tokens of one tile.
      open_turn: end with the open header of an answer, for generation; the last turn must be the user's.
      independent: every question with its answer is a branch of its own; all up to the last image of the first
        question is shared, and the white space behind that image stands before every other question too.

    Raises:
      UserError: roles out of order, not as many marks as images, or independent questions of which one is not answered
        or has an image of its own, or whose images stand behind the first question's text.
    """
    system, dialogue = _split_system(turns, template)
    _check_roles(dialogue, open_turn)
    texts = _place_marks(dialogue, len(tiles_per_image))

    spans = [Span(template.begin + template.prefixes["system"], control=True), Span(system)]
    spans += _close(template)
    texts = [_strip(text, template) for text in texts]
    placeholders = enumerate(tiles * tokens_per_tile for tiles in tiles_per_image)
    if independent:
        spans += _branches(texts, template, placeholders, open_turn)
    else:
        for turn, text in zip(dialogue, texts, strict=True):
            spans += _turn(turn.role, text, template, placeholders)
    if open_turn:
        spans.append(Span(template.prefixes["assistant"], control=True))
    return [span for span in spans if span.text or span.image is not None]


def _turn(role: Role, text: str, template: Template, placeholders: Iterator[tuple[int, int]]) -> list[Span]:
    """The spans of one turn; takes the next images for the marks of a user's."""
    answer = role == "assistant"
    body = [Span(text, supervised=True)] if answer else _user_text(text, placeholders)
    return [Span(template.prefixes[role], control=True), *body, *_close(template, supervised=answer)]


def _user_text(text: str, placeholders: Iterator[tuple[int, int]]) -> list[Span]:
    first, *others = text.split(IMAGE)
    spans = [Span(first)]
    for other in others:
        spans += [*_image_spans(*next(placeholders)), Span(other)]
    return spans


def _branches(
    texts: Sequence[str], template: Template, placeholders: Iterator[tuple[int, int]], open_turn: bool
) -> list[Span]:
    """The user's header with the images, then every question with its answer as a branch."""
    if open_turn or len(texts) % 2:
        raise UserError("independent questions must all be answered")
    if any(IMAGE in text for text in texts[2::2]):
        raise UserError("independent questions share the images of the first; a later one has an image of its own")
    head, mark, first = texts[0].rpartition(IMAGE)
    if mark and not first.strip():
        raise UserError("independent questions: the images must stand before the first question's text")
    gap = first[: len(first) - len(first.lstrip())] if mark else ""
    questions = [first, *(gap + text for text in texts[2::2])]
    spans = [Span(template.prefixes["user"], control=True), *_user_text(head + mark, placeholders)]
    for branch, (question, answer) in enumerate(zip(questions, texts[1::2], strict=True), start=1):
        own = [Span(question), *_close(template), *_turn("assistant", answer, template, placeholders)]
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


def to_jinja(template: Template) -> str:
    r"""The same format as a `chat_template.jinja` for `transformers`.

    Message contents are strings with `<image>` marks or lists of `{"type": "image"}`, `{"type": "video"}` and
    `{"type": "text"}` parts; an image part renders as the context token and a newline, which the processor expands to
    `<img>...</img>`. Where messages are stripped, a list is stripped as a whole, because `render` sees it as one text.
    """
    trim = " | trim" if template.strip else ""
    close = _quote(template.stop + template.after_stop)
    prefixes = {role: _quote(prefix) for role, prefix in template.prefixes.items()}
    return (
        f"{{{{- {_quote(template.begin)} }}}}"
        "{%- if messages[0]['role'] != 'system' %}"
        f"{{{{- {prefixes['system']} + {_quote(template.system)} + {close} }}}}"
        "{%- endif %}"
        "{%- for message in messages %}"
        f"{{{{- {{'system': {prefixes['system']}, 'user': {prefixes['user']}, "
        f"'assistant': {prefixes['assistant']}}}[message['role']] }}}}"
        "{%- set text %}"
        "{%- if message['content'] is string %}"
        "{%- if message['role'] == 'user' %}"
        f"{{{{- message['content'] | replace('{IMAGE}', '{IMAGE_CONTEXT}') }}}}"
        "{%- else %}"
        "{{- message['content'] }}"
        "{%- endif %}"
        "{%- else %}"
        "{%- for part in message['content'] %}"
        f"{{%- if part['type'] == 'image' %}}{{{{- '{IMAGE_CONTEXT}\\n' }}}}"
        "{%- elif part['type'] == 'video' %}{{- '<video>\\n' }}"
        "{%- elif part['type'] == 'text' %}{{- part['text'] }}"
        "{%- endif %}"
        "{%- endfor %}"
        "{%- endif %}"
        "{%- endset %}"
        f"{{{{- text{trim} + {close} }}}}"
        "{%- endfor %}"
        f"{{%- if add_generation_prompt %}}{{{{- {prefixes['assistant']} }}}}{{%- endif %}}"
    )


def _split_system(turns: Sequence[Turn], template: Template) -> tuple[str, Sequence[Turn]]:
    if turns and turns[0].role == "system":
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


def _place_marks(dialogue: Sequence[Turn], images: int) -> list[str]:
    """The turns' texts, with a mark put before the first one if no user turn has any."""
    texts = [turn.text for turn in dialogue]
    marks = sum(turn.text.count(IMAGE) for turn in dialogue if turn.role == "user")
    if images and not marks:
        texts[0] = f"{IMAGE}\n{texts[0]}"
        marks = 1
    if marks != images:
        raise UserError(f"the text has {marks} {IMAGE} mark(s) for {images} image(s)")
    return texts


def _image_spans(image: int, placeholders: int) -> list[Span]:
    return [
        Span(IMAGE_START, control=True),
        Span("", image=image, placeholders=placeholders),
        Span(IMAGE_END, control=True),
    ]


def _close(template: Template, supervised: bool = False) -> list[Span]:
    return [Span(template.stop, supervised, control=True), Span(template.after_stop, control=True)]


def _strip(text: str, template: Template) -> str:
    return text.strip() if template.strip else text


def _quote(text: str) -> str:
    """A Jinja string literal."""
    return "'" + text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n") + "'"


_CHATML: dict[Role, str] = {
    "system": "<|im_start|>system\n",
    "user": "<|im_start|>user\n",
    "assistant": "<|im_start|>assistant\n",
}
_INTERNVL2_SYSTEM = (
    "你是由上海人工智能实验室联合商汤科技开发的书生多模态大模型，英文名叫InternVL, 是一个有用无害的人工智能助手。"
)
_INTERNVL2_5_SYSTEM = (
    "你是书生·万象，英文名是InternVL，是由上海人工智能实验室、清华大学及多家合作单位联合开发的多模态大语言模型。"
)

TEMPLATES: dict[str, Template] = {
    template.name: template
    for template in (
        # InternVL2 with a Qwen2 decoder (upstream name Hermes-2): nothing after <|im_end|>.
        Template(name="internvl2", system=_INTERNVL2_SYSTEM, prefixes=_CHATML, stop="<|im_end|>"),
        Template(
            name="internlm2-chat",
            system=_INTERNVL2_SYSTEM,
            prefixes=_CHATML,
            stop="<|im_end|>",
            begin="<s>",
            strip=True,
        ),
        Template(
            name="phi3",
            system=_INTERNVL2_SYSTEM,
            # What Phi-3's slow tokenizer, with which it was trained, puts before every prompt: <s> and a lone "▁". (The
            # lengths that `preprocess_phi3` reckons with fit a conversation of several turns in no other way.)
            begin="<s> ",
            prefixes={"system": "<|system|>\n", "user": "<|user|>\n", "assistant": "<|assistant|>\n"},
            stop="<|end|>",
        ),
        Template(name="internvl2_5", system=_INTERNVL2_5_SYSTEM, prefixes=_CHATML, stop="<|im_end|>", after_stop="\n"),
    )
}
"""Prompt formats by name. Mini-InternVL 1B, 2B and 4B use `internvl2`, `internlm2-chat` and `phi3`."""
