"""Styles: what a large model is asked to write about a picture, as data. Each is a TOML file in `prompts/`, or yours.

A prompt's text may hold `{captions}`, `{boxes}`, `{ocr}` and `{facts}` (`contexts.py`), a judge's also `{caption}`.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from vlm_jax.config import build, config_class
from vlm_jax.data.recipes.contexts import FIELDS, Context
from vlm_jax.data.recipes.replies import Kind
from vlm_jax.errors import UserError, did_you_mean
from vlm_jax.files import read_table

PROMPTS = Path(__file__).with_name("prompts")
"""Folder of the styles that come with the package."""

_NAMES = re.compile(r"\{([a-z_]+)\}")


@config_class
class Example:
    """A question and an answer that stand before the real question, in context.

    Attributes:
      user, assistant: their texts.
    """

    user: str
    assistant: str


@config_class
class Prompt:
    """What is asked.

    Attributes:
      system: what the model is told first.
      user: the question, with names of fields in braces.
      image: the picture is sent too.
      examples: in context.
      temperature, max_tokens: of the answer.
    """

    system: str
    user: str
    image: bool = False
    examples: list[Example] = dataclasses.field(default_factory=list)
    temperature: float = 0.7
    max_tokens: int = 1024


@config_class
class Ask:
    """One question for each picture, whose answer is the conversation.

    Attributes:
      about: one line on what it makes.
      needs: fields of a context of which at least one must hold something.
      prompt: that is asked.
      reply: what kind of reply is expected (`replies.Kind`).
      questions: of a plain `answer`, what the record asks; the id decides which.
      pattern: a regular expression that every pair must match somewhere.
    """

    type: Literal["ask"] = "ask"
    about: str
    needs: list[str] = dataclasses.field(default_factory=list)
    prompt: Prompt
    reply: Kind
    questions: list[str] = dataclasses.field(default_factory=list)
    pattern: str = ""


@config_class
class CaptionFilter:
    """Captions are written, and all of them, those that were there included, judged; the best are kept (BLIP).

    Attributes:
      about, needs, questions: as in `Ask`.
      caption: asks for a caption.
      judge: asks for a score from 0 to 100 of `{caption}`.
      candidates: captions that are written, each asked for by itself.
      threshold: a caption is kept if its score is at least this,
      keep: and no more than so many, the best.
    """

    type: Literal["caption_filter"] = "caption_filter"
    about: str
    needs: list[str] = dataclasses.field(default_factory=list)
    caption: Prompt
    judge: Prompt
    candidates: int = 1
    threshold: float = 50.0
    keep: int = 1
    questions: list[str] = dataclasses.field(default_factory=list)


Style = Annotated[Ask | CaptionFilter, pydantic.Field(discriminator="type")]


def names_of_styles() -> list[str]:
    """The styles that come with the package."""
    return sorted(path.stem for path in PROMPTS.glob("*.toml"))


def load_style(name: str) -> Ask | CaptionFilter:
    """A style by its name, or by the path of a file.

    Raises:
      UserError: there is no such style, or a field of the file is wrong.
    """
    known = names_of_styles()
    if name not in known and not name.endswith((".toml", ".json")):
        raise UserError(
            f"--style: no style '{name}'{did_you_mean(name, known)}; there are {', '.join(known)}, or a file"
        )
    path = PROMPTS / f"{name}.toml" if name in known else Path(name)
    style = build(Style, read_table(path), str(path))
    _check(style, path)
    return style


def _check(style: Ask | CaptionFilter, path: Path) -> None:
    if unknown := sorted(set(style.needs) - set(FIELDS)):
        raise UserError(f"{path}: needs: no field '{unknown[0]}'; there are {', '.join(FIELDS)}")
    if isinstance(style, Ask):
        prompts = {"prompt": (style.prompt, FIELDS)}
        if style.reply == "answer" and not style.questions:
            raise UserError(f"{path}: questions: an answer needs at least one question")
        try:
            re.compile(style.pattern)
        except re.error as error:
            raise UserError(f"{path}: pattern: {error}") from None
    else:
        prompts = {"caption": (style.caption, FIELDS), "judge": (style.judge, (*FIELDS, "caption"))}
        if style.candidates < 0 or style.keep < 1:
            raise UserError(f"{path}: candidates must be at least 0 and keep at least 1")
    for field, (prompt, allowed) in prompts.items():
        if wrong := sorted(set(_NAMES.findall(prompt.user)) - set(allowed)):
            raise UserError(f"{path}: {field}.user: nothing is known as {{{wrong[0]}}}; there are {', '.join(allowed)}")


def messages(prompt: Prompt, context: Context, image: Mapping[str, Any], **more: str) -> list[dict[str, Any]]:
    """The messages of a request.

    Args:
      prompt: what is asked.
      context: about which picture.
      image: the part of a message that stands for the picture, where the prompt sends it.
      **more: texts by name, besides the context's fields.
    """
    text = _NAMES.sub(lambda found: more.get(found[1]) or context.text(found[1]), prompt.user)
    content = [dict(image), {"type": "text", "text": text}] if prompt.image else text
    shown = [
        {"role": role, "content": said}
        for example in prompt.examples
        for role, said in (("user", example.user), ("assistant", example.assistant))
    ]
    return [{"role": "system", "content": prompt.system}, *shown, {"role": "user", "content": content}]
