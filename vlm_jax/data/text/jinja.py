"""A prompt format as the `chat_template.jinja` of a folder for `transformers`; it writes what `render` writes."""

from __future__ import annotations

from vlm_jax.data.conversation import IMAGE
from vlm_jax.data.text.templates import Template


def to_jinja(template: Template) -> str:
    r"""The same format as a `chat_template.jinja` for `transformers`.

    Message contents are strings with `<image>` marks or lists of `{"type": "image"}`, `{"type": "video"}` and
    `{"type": "text"}` parts; an image part renders as the context token and a newline, which the processor expands to
    all tokens of the image. Where messages are stripped, a list is stripped as a whole, because `render` sees it as one
    text. An image that no message has a mark for is not put anywhere.
    """
    closings = {role: template.closing(role) for role in template.prefixes}
    closings["assistant"] = template.answer_tail + template.stop + template.after_stop
    heads = {**template.prefixes, "assistant": template.prefixes["assistant"] + template.answer_lead}
    own = [""] if template.system is None else [heads["system"], template.system, closings["system"]]
    opening = "{{- opening }}"
    return "".join(
        (
            _words(template),
            "{%- set given = messages[0]['role'] == 'system' %}",
            _images_first(template),
            f"{{{{- {_quote(template.bos + template.begin)} }}}}",
            "{%- set opening %}",
            f"{{%- if given %}}{_turn(template, 'messages[0]', heads, closings)}",
            f"{{%- else %}}{{{{- {' + '.join(map(_quote, own))} }}}}{{%- endif %}}",
            "{%- endset %}",
            "" if template.system_within else opening,
            "{%- for message in (messages[1:] if given else messages) %}",
            _turn(template, "message", heads, closings, f"{{%- if loop.first %}}{opening}{{%- endif %}}"),
            "{%- endfor %}",
            f"{{%- if add_generation_prompt %}}{{{{- {_quote(template.prefixes['assistant'])} }}}}{{%- endif %}}",
        )
    )


def _words(template: Template) -> str:
    """A macro: the text of a message, with the context token where an image stands."""
    context = _quote(template.image_context)
    return (
        "{%- macro words(message) %}"
        "{%- if message['content'] is string %}"
        "{%- if message['role'] == 'user' %}"
        f"{{{{- message['content'] | replace('{IMAGE}', {context}) }}}}"
        "{%- else %}"
        "{{- message['content'] }}"
        "{%- endif %}"
        "{%- else %}"
        "{%- for part in message['content'] %}"
        f"{{%- if part['type'] == 'image' %}}{{{{- {context} + '\\n' }}}}"
        "{%- elif part['type'] == 'video' %}{{- '<video>\\n' }}"
        "{%- elif part['type'] == 'text' %}{{- part['text'] }}"
        "{%- endif %}"
        "{%- endfor %}"
        "{%- endif %}"
        "{%- endmacro %}"
    )


def _images_first(template: Template) -> str:
    """The images of all messages, where they stand before the prompt."""
    if template.images != "prompt":
        return ""
    return (
        "{%- for message in messages %}{%- if message['role'] == 'user' %}"
        f"{{{{- {_quote(template.image_context)} * ({_count(template)}) }}}}"
        "{%- endif %}{%- endfor %}"
    )


def _turn(template: Template, message: str, heads: dict[str, str], closings: dict[str, str], opening: str = "") -> str:
    """One message; `opening` is written behind a user's prefix where a system text stands within."""
    choices = "{" + ", ".join(f"'{role}': {_quote(text)}" for role, text in heads.items()) + "}"
    ends = "{" + ", ".join(f"'{role}': {_quote(closings[role])}" for role in heads) + "}"
    refusal = f"the prompt format {template.name} has no place for a system text"
    check = f"{{%- if {message}['role'] == 'system' %}}{{{{- raise_exception({_quote(refusal)}) }}}}{{%- endif %}}"
    return (
        ("" if "system" in heads else check)
        + f"{{{{- {choices}[{message}['role']] }}}}"
        + (opening if template.system_within else "")
        + f"{{%- set text = words({message}) %}}"
        + _placed(template, message)
        + f"{{{{- text{' | trim' if template.strip else ''} + {ends}[{message}['role']] }}}}"
    )


def _placed(template: Template, message: str) -> str:
    """Moves the images of a user's text to where the format has them."""
    context = _quote(template.image_context)
    rest = f"(text | replace({context}, '') | trim)"
    if template.captions:
        condition, placed = "", f"{context} * ({_count(template, 'text')})"
    elif template.images == "prompt":
        condition, placed = f" and {context} in text", rest
    elif template.images == "turn":
        condition, placed = f" and {_count(template, 'text')} == 1", f"({context} + '\\n' + {rest}) | trim"
    else:
        return ""
    return f"{{%- if {message}['role'] == 'user'{condition} %}}{{%- set text = {placed} %}}{{%- endif %}}"


def _count(template: Template, text: str = "words(message)") -> str:
    """An expression: how many images a text has."""
    return f"({text}.split({_quote(template.image_context)}) | length) - 1"


def _quote(text: str) -> str:
    """A Jinja string literal."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'").replace("\n", "\\n").replace("\x04", "\\x04")
    return f"'{escaped}'"
