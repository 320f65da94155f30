"""The system message that a folder's model was trained with: in `config.json`, or in a release's `conversation.py`.

InternVL's own folders name their prompt format in `config.json`, but its text stands in code beside it, and releases
that share a name do not share the text: `internlm2-chat` of Mini-InternVL-Chat-2B-V1-5 and of InternVL2-2B differ. That
file is parsed as data and never run. Source: `internvl/conversation.py` of OpenGVLab/InternVL through its history.
"""

from __future__ import annotations

import ast
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_jax.convert.fields import CONFIG, Fields
from vlm_jax.data.text.templates import TEMPLATES, Template
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.errors import UserError
from vlm_jax.system import System

CONVERSATION = "conversation.py"

_TUNED_WITH: Mapping[str, tuple[str, ...]] = {
    "llama": ("chatml_direct", "vicuna_v1"),  # Nous-Hermes-2-Yi-34B, and Vicuna
    "mistral": ("mistral_instruct",),
    "qwen2": ("chatml_direct",),
    "qwen3": ("chatml_direct",),
    "phi": ("phi",),
    "stablelm": ("phi",),
    "gemma": ("gemma",),
}
"""Prompt formats that releases of LLaVA have with a language model of this `model_type`."""

# What InternVL's dataclass has where a call leaves a field out.
_DEFAULTS = {
    "system_template": "{system_message}",
    "system_message": "",
    "roles": ("USER", "ASSISTANT"),
    "sep_style": "ADD_COLON_SINGLE",
    "sep": "\n",
}


def read_prompt(fields: Fields, template: str, release: str | None = None) -> str | None:
    """`System.system_prompt` of a folder: its `config.json`'s `system_message`, or else that of its release.

    InternVL's code since July 2024 lets that field replace the text of `conversation.py`. We write it in both layouts.
    """
    if not isinstance(template, str):
        fields.wrong("template", f"must be text, is {template!r}")
        return None
    message = fields.get("system_message", release)
    if not isinstance(message, str | None):
        fields.wrong("system_message", f"must be text, is {message!r}")
        return None
    known = TEMPLATES.get(template)
    return None if known is not None and message == known.system else message


def write_prompt(system: System) -> dict[str, str]:
    """The entry of `config.json` that `read_prompt` reads; none where the prompt format's own text is meant."""
    return {} if system.system_prompt is None else {"system_message": system.system_prompt}


def template_for(folder: Path, model_type: str | None) -> str:
    """The prompt format of a LLaVA whose `config.json` does not name one, as none of its releases does.

    Of the formats that releases with such a language model were tuned with, it is the first whose tokens the folder's
    tokenizer has. Where that is not the right one, an entry `template` in `config.json` says it.

    Raises:
      UserError: there is none.
    """
    tokenizer = Tokenizer.load(folder)
    for name in _TUNED_WITH.get(model_type or "", ()):
        if tokenizer.has(*TEMPLATES[name].control):
            return name
    raise UserError(
        f"{folder / CONFIG}: it does not name the prompt format, and no known one goes with a {model_type} and this "
        f"tokenizer; write it there as 'template': one of {', '.join(TEMPLATES)}"
    )


def read_release(folder: Path, name: str, template: Template) -> str | None:
    """The system message that a folder's `conversation.py` gives to a prompt format; None where there is no such file.

    Args:
      folder: the model folder.
      name: InternVL's name of the format (`template` in `config.json`).
      template: ours of that name.

    Raises:
      UserError: the file is not Python, lacks the format, computes it, or lays it out in another way than `template`.
    """
    path = folder / CONVERSATION
    if not path.is_file():
        return None
    call = _find(path, name)
    found = {field: _literal(call, field, f"{path}: '{name}'") for field in _DEFAULTS}
    expected = {
        "system_template": template.prefixes.get("system", "") + "{system_message}",
        "roles": (template.prefixes["user"], template.prefixes["assistant"]),
        "sep_style": "MPT",
        "sep": template.stop + template.after_stop,
    }
    wrong = [
        f"{field} is {found[field]!r}, not {value!r}" for field, value in expected.items() if found[field] != value
    ]
    if not isinstance(found["system_message"], str):
        wrong.append(f"system_message is {found['system_message']!r}, not text")
    if wrong:
        raise UserError(f"{path}: '{name}' is another prompt format than ours of that name: {'; '.join(wrong)}")
    return found["system_message"]


def _find(path: Path, name: str) -> ast.Call:
    """The call `Conversation(name=..., ...)` with this name."""
    try:
        tree = ast.parse(path.read_bytes(), str(path))
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror}") from None
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{path}: not Python: {error}") from None
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "Conversation":
            names = [keyword.value for keyword in node.keywords if keyword.arg == "name"]
            if names and isinstance(names[0], ast.Constant) and names[0].value == name:
                return node
    raise UserError(f"{path}: it has no prompt format '{name}', which {path.with_name(CONFIG)} asks for")


def _literal(call: ast.Call, field: str, where: str) -> Any:
    values = [keyword.value for keyword in call.keywords if keyword.arg == field]
    if not values:
        return _DEFAULTS[field]
    value = values[0]
    if field == "sep_style" and isinstance(value, ast.Attribute):  # SeparatorStyle.MPT
        return value.attr
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError, SyntaxError, MemoryError, RecursionError):
        raise UserError(f"{where}: {field} is not a literal, and code of a model folder is not run") from None
