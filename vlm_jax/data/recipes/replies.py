"""What a large model wrote, as turns: each kind of reply has one parser, and nothing is guessed.

A reply in JSON may stand alone or in one fenced block. Whatever else comes is an error, so that it can be counted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any, Literal

from vlm_jax.data.conversation import IMAGE
from vlm_jax.data.formats.records import VIDEO

Pair = tuple[str, str]
"""A question with its answer."""

Kind = Literal["conversation", "conversations", "pairs", "answer"]
"""What is expected: a list of pairs as one conversation; a list of such lists; a list of pairs, each a conversation of
its own; plain text, the answer to a question that is asked anyway."""

_FENCE = re.compile(r"```[\w-]*[ \t]*\n(.*?)\n?[ \t]*```", re.DOTALL)
_SHOWN = 60  # characters of a reply in a message


class ReplyError(ValueError):
    """A reply that is not what was asked for."""


def parse_reply(text: str, kind: Kind, question: str = "", pattern: str = "") -> list[list[Pair]]:
    """The conversations in a reply.

    Args:
      text: of the reply.
      kind: of reply that was asked for.
      question: that an `answer` answers.
      pattern: a regular expression that must be found in every pair, in the question or the answer.

    Raises:
      ReplyError: it is something else.
    """
    found = PARSERS[kind](text, question)
    for pair in (pair for conversation in found for pair in conversation):
        for part in pair:
            if IMAGE in part or VIDEO in part:
                raise ReplyError(f"has a mark of a picture in its text: {_shown(part)}")
        if pattern and not re.search(pattern, "\n".join(pair)):
            raise ReplyError(f"nothing in it looks like {pattern}: {_shown(' / '.join(pair))}")
    return found


def parse_score(text: str) -> float:
    """A mark from 0 to 100: `{"score": 85}`, or the number alone.

    Raises:
      ReplyError: it is something else.
    """
    value = _json(text)
    score = value.get("score") if isinstance(value, dict) else value
    if isinstance(score, bool) or not isinstance(score, int | float) or not 0 <= score <= 100:
        raise ReplyError(f"must be a score from 0 to 100, got {_shown(text)}")
    return float(score)


def _conversation(text: str, question: str) -> list[list[Pair]]:
    return [_pairs(_json(text), "the reply")]


def _conversations(text: str, question: str) -> list[list[Pair]]:
    value = _json(text)
    if not isinstance(value, list) or not value:
        raise ReplyError(f"must be a list of conversations, got {_shown(text)}")
    return [_pairs(part, f"conversation {number}") for number, part in enumerate(value, start=1)]


def _each(text: str, question: str) -> list[list[Pair]]:
    return [[pair] for pair in _pairs(_json(text), "the reply")]


def _answer(text: str, question: str) -> list[list[Pair]]:
    if not text.strip():
        raise ReplyError("is empty")
    return [[(question, text.strip())]]


PARSERS: dict[Kind, Callable[[str, str], list[list[Pair]]]] = {
    "conversation": _conversation,
    "conversations": _conversations,
    "pairs": _each,
    "answer": _answer,
}
"""Parser by kind: of the reply's text and the question that was asked."""


def _json(text: str) -> Any:
    fenced = _FENCE.findall(text)
    try:
        return json.loads(fenced[0] if len(fenced) == 1 else text)
    except (ValueError, RecursionError):
        raise ReplyError(f"must be JSON, got {_shown(text)}") from None


def _pairs(value: Any, name: str) -> list[Pair]:
    if not isinstance(value, list) or not value:
        raise ReplyError(f"{name} must be a list of questions with answers, got {_shown(json.dumps(value))}")
    pairs = []
    for number, item in enumerate(value, start=1):
        texts = tuple(item.get(side) if isinstance(item, dict) else None for side in ("question", "answer"))
        if not all(isinstance(text, str) and text.strip() for text in texts):
            raise ReplyError(
                f"pair {number} of {name} must have a question and an answer, got {_shown(json.dumps(item))}"
            )
        pairs.append((texts[0].strip(), texts[1].strip()))
    return pairs


def _shown(text: str) -> str:
    line = " ".join(text.split())
    return repr(line if len(line) <= _SHOWN else f"{line[: _SHOWN - 3]}...")
