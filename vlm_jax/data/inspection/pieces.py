"""The tokens of one example as pieces that people can read: what each says, and how much the model learns from it."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Literal, NamedTuple

from vlm_jax.batch import TEXT
from vlm_jax.data.prepare import Example
from vlm_jax.data.text.tokenizer import Tokenizer

_WIDEST = 8  # tokens that may make up one character between them
_HALF = "\N{REPLACEMENT CHARACTER}"


class Piece(NamedTuple):
    """One token, the few that make up one character, or a run of placeholders.

    Attributes:
      text: what it says.
      kind: a token of text, a control token, or an image's placeholders.
      ids: the tokens' ids; of placeholders one.
      count: number of tokens.
      weight: in the loss, of each of its tokens.
      position: rotary position of the first.
      branch: number of the independent question, 0 outside of any.
    """

    text: str
    kind: Literal["text", "control", "image"]
    ids: tuple[int, ...]
    count: int
    weight: float
    position: int
    branch: int


def pieces_of(example: Example, tokenizer: Tokenizer) -> list[Piece]:
    """All tokens of an example in order."""
    ids, found, behind = example.tokens.tolist(), [], []
    visual = (example.visual != TEXT).tolist()
    is_control = functools.cache(functools.partial(_is_control, tokenizer))
    marks = list(zip(visual, example.loss_weights.tolist(), example.branches.tolist(), strict=True))
    start = 0
    while start < len(ids):
        stop = start + 1
        if visual[start]:
            kind, text, behind = "image", tokenizer.decode(ids[start:stop], skip_special=False), []
            while stop < len(ids) and marks[stop] == marks[start]:
                stop += 1
        elif is_control(ids[start]):
            kind, text, behind = "control", tokenizer.decode(ids[start:stop], skip_special=False), [ids[start]]
        else:
            kind, text = "text", _said(behind, ids[start:stop], tokenizer)
            while text.endswith(_HALF) and _goes_on(marks, start, stop) and not is_control(ids[stop]):
                stop += 1
                text = _said(behind, ids[start:stop], tokenizer)
            behind = ids[start:stop]
        _, weight, branch = marks[start]
        own = tuple(ids[start:stop] if kind != "image" else ids[start : start + 1])
        found.append(Piece(text, kind, own, stop - start, weight, int(example.positions[start]), branch))
        start = stop
    return found


def _is_control(tokenizer: Tokenizer, token: int) -> bool:
    # A lone space says nothing either way: SentencePiece drops it at the beginning of a text.
    return not tokenizer.decode([token]) and bool(tokenizer.decode([token], skip_special=False))


def _goes_on(marks: Sequence[tuple], start: int, stop: int) -> bool:
    return stop < len(marks) and stop - start < _WIDEST and marks[stop] == marks[start]


def _said(behind: list[int], ids: list[int], tokenizer: Tokenizer) -> str:
    """What `ids` say behind others: alone, many tokenizers drop the space that a token begins with."""
    before = tokenizer.decode(behind, skip_special=False)
    whole = tokenizer.decode(behind + ids, skip_special=False)
    return whole[len(before) :] if whole.startswith(before) else tokenizer.decode(ids, skip_special=False)


def visible(text: str) -> str:
    """Text in which line breaks can be seen, and characters that have no shape are written as escapes."""
    return "".join(_visible(character) for character in text)


def _visible(character: str) -> str:
    if character == "\n":
        return "↵\n"
    if character.isprintable():
        return character
    return character.encode("unicode_escape").decode("ascii")
