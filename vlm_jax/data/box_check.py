"""Boxes that are written in a conversation's text must lie inside of the picture.

`<box>[[x1, y1, x2, y2], ...]</box>` has integers in thousandths of the picture's width and height, origin top left
(InternVL's documentation on grounding), `<quad>` has the four corners of a quadrilateral, and `<point>` has points.
Numbers outside of 0 to 1000 come from data that counts in pixels, or from a box that was not cut at the border; a model
would learn them all the same. So would it a box whose corners are swapped (`vlm_jax.data.boxes`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator

from vlm_jax.data.boxes import problem_of
from vlm_jax.data.conversation import Conversation, RecordError

_MARKED = re.compile(r"<(box|quad|point)>([^<]*)</\1>")


def check_boxes(conversation: Conversation) -> None:
    """Refuses a conversation with a box outside of its picture.

    What stands between the tags and is no list of numbers (a question may explain the format in letters) is text.

    Raises:
      RecordError: naming the turn and the box.
    """
    for number, turn in enumerate(conversation.turns):
        for tag, box in boxes_in(turn.text):
            if problem := problem_of(box):
                said = f"<{tag}>{_shown(box)}</{tag}> {problem}"
                raise RecordError(conversation.name, "box", f"conversations[{number}].value: {said}")


def boxes_in(text: str) -> Iterator[tuple[str, list[float]]]:
    """The tag (`box`, `quad` or `point`) and the numbers of every box that is written in a text."""
    for tag, content in _MARKED.findall(text):
        try:
            found = json.loads(content)
        except (ValueError, RecursionError):
            continue
        if not isinstance(found, list):
            continue
        for box in found if any(isinstance(item, list) for item in found) else [found]:
            if isinstance(box, list) and box and all(isinstance(value, int | float) for value in box):
                yield tag, box


def _shown(box: list[float]) -> str:
    text = ", ".join(f"{value:.6g}" for value in box[:8])
    return f"[[{text}{', ...' if len(box) > 8 else ''}]]"
