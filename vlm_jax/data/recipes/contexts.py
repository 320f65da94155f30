"""What a large model is told of a picture that it writes about, without seeing it: captions, boxes, text, facts.

    {"id": "42", "image": "a.jpg", "captions": ["A dog on a sofa."],
     "boxes": [{"label": "dog", "box": [0.1, 0.2, 0.5, 0.9]}]}

A box is left, top, right, bottom as shares of the picture's width and height, from 0 to 1. A record may also have
`ocr`, transcripts of the picture's text, one for each OCR that read it; `words`, what the recipe `ocr --save-words`
writes (places in pixels), of which a transcript is made; and `facts`, sentences on objects, attributes and relations
(Visual Genome's). Other fields do not count.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, NamedTuple

from vlm_jax.data.conversation import RecordError
from vlm_jax.data.formats.records import bad
from vlm_jax.data.recipes.ocr_layout import transcript
from vlm_jax.data.recipes.ocr_words import words_from_json

FIELDS = ("captions", "boxes", "ocr", "facts")
"""What a prompt may ask for, as `{captions}`."""


class NamedBox(NamedTuple):
    """A thing in a picture.

    Attributes:
      label: what it is.
      box: left, top, right, bottom as shares of the picture's width and height.
    """

    label: str
    box: tuple[float, float, float, float]


class Context(NamedTuple):
    """What is known of a picture.

    Attributes:
      id: unique among the contexts.
      image: name of its file, from the root folder.
      captions, ocr, facts: texts.
      boxes: things with their places.
    """

    id: str
    image: str
    captions: tuple[str, ...] = ()
    boxes: tuple[NamedBox, ...] = ()
    ocr: tuple[str, ...] = ()
    facts: tuple[str, ...] = ()

    def text(self, field: str) -> str:
        """A field as a prompt shows it, a line for each thing; '(none)' where there is nothing."""
        if field == "boxes":
            lines = [f"{box.label}: [{', '.join(f'{side:.3f}' for side in box.box)}]" for box in self.boxes]
        elif field == "ocr":
            lines = [f"[OCR {number}]\n{text}" for number, text in enumerate(self.ocr, start=1)]
        else:
            lines = list(getattr(self, field))
        return "\n".join(lines) or "(none)"


def read_context(line: bytes, place: str) -> Context:
    """Reads a record of the form above.

    Raises:
      RecordError: naming the field.
    """
    try:
        fields = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        raise RecordError(place, "json", f"not valid JSON: {' '.join(str(error).split())}") from None
    if not isinstance(fields, dict):
        raise RecordError(place, "type", "must be a JSON object with id, image and captions or boxes")
    image, id_ = fields.get("image"), fields.get("id", fields.get("image"))
    if not isinstance(image, str) or not image:
        bad(place, "type", "image", "must be the name of a picture")
    if not isinstance(id_, str | int) or id_ == "":
        bad(place, "type", "id", f"must be text or a number, got {id_!r}")
    ocr = _texts(fields, "ocr", place)
    if fields.get("words") is not None and (text := transcript(words_from_json(fields["words"], place))):
        ocr = (*ocr, text)
    captions, facts = _texts(fields, "captions", place), _texts(fields, "facts", place)
    return Context(str(id_), image, captions, _boxes(fields, place), ocr, facts)


def to_json(context: Context) -> dict[str, Any]:
    """What `read_context` reads; empty fields are left out."""
    boxes = [{"label": box.label, "box": list(box.box)} for box in context.boxes]
    texts = {field: list(getattr(context, field)) for field in ("captions", "ocr", "facts")}
    lists = {"captions": texts["captions"], "boxes": boxes, "ocr": texts["ocr"], "facts": texts["facts"]}
    return {"id": context.id, "image": context.image, **{field: value for field, value in lists.items() if value}}


def _texts(fields: Mapping[str, Any], field: str, place: str) -> tuple[str, ...]:
    value = fields.get(field)
    if value is None:
        return ()
    if not isinstance(value, list) or not all(isinstance(text, str) for text in value):
        bad(place, "type", field, "must be a list of texts")
    return tuple(text.strip() for text in value if text.strip())


def _boxes(fields: Mapping[str, Any], place: str) -> tuple[NamedBox, ...]:
    given = fields.get("boxes")
    if given is None:
        return ()
    if not isinstance(given, list):
        bad(place, "type", "boxes", "must be a list of objects with label and box")
    found = []
    for number, thing in enumerate(given):
        name = f"boxes[{number}]"
        if not isinstance(thing, dict) or not isinstance(thing.get("label"), str):
            bad(place, "type", name, "must be an object with label and box")
        box = thing.get("box")
        numbers = isinstance(box, list) and len(box) == 4
        if not numbers or not all(isinstance(side, int | float) and not isinstance(side, bool) for side in box):
            bad(place, "type", f"{name}.box", "must be four numbers: left, top, right, bottom")
        if not (0 <= box[0] <= box[2] <= 1 and 0 <= box[1] <= box[3] <= 1):
            problem = (
                f"must be shares of the picture's width and height from 0 to 1, left, top, right, bottom; got {box}"
            )
            bad(place, "box", f"{name}.box", problem)
        found.append(NamedBox(thing["label"].strip(), (box[0], box[1], box[2], box[3])))
    return tuple(found)
