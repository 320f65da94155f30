"""What is asked of a model about one picture, step by step, and the records that its replies become.

A flow is a generator: it yields requests and is sent replies, in the same order whether a reply is new or was kept. So
it knows nothing of servers, files and threads, and what it returns is a pure function of the replies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Generator, Sequence
from typing import Any, NamedTuple

from vlm_jax.data.conversation import IMAGE, RecordError
from vlm_jax.data.recipes.contexts import Context
from vlm_jax.data.recipes.replies import Pair, ReplyError, parse_reply, parse_score
from vlm_jax.data.recipes.styles import Ask, CaptionFilter, Prompt


class Request(NamedTuple):
    """A request about a picture.

    Attributes:
      step: names it among the picture's requests.
      prompt: what is asked.
      more: texts that the prompt may name, besides the context's fields.
    """

    step: str
    prompt: Prompt
    more: dict[str, str]


class Reply(NamedTuple):
    """What came back.

    Attributes:
      text: of the message.
      whole: it ended by itself, and not at the limit of tokens.
    """

    text: str
    whole: bool = True


Flow = Generator[Request, Reply, list[dict[str, Any]]]
"""Yields requests, is sent replies, returns records; raises `RecordError` of a reply that cannot be used."""


def flow_of(style: Ask | CaptionFilter, context: Context, place: str, seed: int) -> Flow:
    """What a style does about a picture.

    Args:
      style: of the records.
      context: what is known of the picture.
      place: what to call it in an error.
      seed: of which question is asked where a style has several.

    Raises:
      RecordError: when it begins: the context has nothing of what the style needs.
    """
    if style.needs and not any(getattr(context, field) for field in style.needs):
        raise RecordError(place, "missing", f"{' or '.join(style.needs)}: has nothing that the style can write about")
    flow = _ask if isinstance(style, Ask) else _caption_filter
    return flow(style, context, place, seed)


def reply_of(raw: dict[str, Any]) -> Reply:
    """What a server's reply says."""
    choice = raw["choices"][0]
    return Reply(str(choice["message"].get("content") or ""), choice.get("finish_reason") != "length")


def _ask(style: Ask, context: Context, place: str, seed: int) -> Flow:
    reply = yield Request("ask", style.prompt, {})
    question = _drawn(style.questions, context.id, seed)
    try:
        found = parse_reply(_whole(reply), style.reply, question, style.pattern)
    except ReplyError as error:
        raise RecordError(place, "reply", f"ask: {error}") from None
    return [_record(context, number, pairs) for number, pairs in enumerate(found)]


def _caption_filter(style: CaptionFilter, context: Context, place: str, seed: int) -> Flow:
    step = ""
    try:
        captions = list(context.captions)
        for number in range(style.candidates):
            step = f"caption-{number}"
            text = _whole((yield Request(step, style.caption, {}))).strip()
            if not text or IMAGE in text:
                raise ReplyError("is empty" if not text else "has a mark of a picture in its text")
            captions.append(text)
        scores: dict[str, float] = {}
        for number, caption in enumerate(dict.fromkeys(captions)):
            step = f"judge-{number}"
            scores[caption] = parse_score(_whole((yield Request(step, style.judge, {"caption": caption}))))
    except ReplyError as error:
        raise RecordError(place, "reply", f"{step}: {error}") from None
    best = sorted((caption for caption in scores if scores[caption] >= style.threshold), key=lambda c: -scores[c])
    question = _drawn(style.questions, context.id, seed)
    return [
        {**_record(context, number, [(question, caption)]), "score": scores[caption]}
        for number, caption in enumerate(best[: style.keep])
    ]


def _whole(reply: Reply) -> str:
    if not reply.whole:
        raise ReplyError("was cut off at max_tokens")
    return reply.text


def _drawn(questions: Sequence[str], id_: str, seed: int) -> str:
    """One of some questions, by seed and id; '' if there are none."""
    if not questions:
        return ""
    digest = hashlib.sha256(f"{seed}:{id_}".encode()).digest()
    return questions[int.from_bytes(digest[:8], "big") % len(questions)]


def _record(context: Context, number: int, pairs: Sequence[Pair]) -> dict[str, Any]:
    turns = []
    for place, (question, answer) in enumerate(pairs):
        asked = question if place else f"{IMAGE}\n{question}".rstrip()
        turns += [{"from": "human", "value": asked}, {"from": "gpt", "value": answer}]
    return {"id": f"{context.id}-{number}", "image": context.image, "conversations": turns}
