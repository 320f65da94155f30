"""LLaVAR's noisy reading data: a conversation of one turn, "what does it say?", answered by the transcript.

Source: LLaVAR, arXiv 2306.17107, section 3.1: one of ten instructions, then the text that an OCR found. The
instructions here are our own.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any, Literal

from vlm_jax.data.conversation import IMAGE
from vlm_jax.data.recipes.ocr_layout import transcript
from vlm_jax.data.recipes.ocr_words import Word

INSTRUCTIONS = (
    "What does the text in this picture say?",
    "Please write down every piece of text that you can make out.",
    "Read the words in the image out to me.",
    "Which words are printed or written here?",
    "Copy all legible text from this picture.",
    "I cannot read this image myself. What is written in it?",
    "List the text that appears in the image, from top to bottom.",
    "Transcribe the picture's text.",
    "Could you tell me what the writing in this image says?",
    "Turn the visible lettering of this picture into plain text.",
)
"""Ten ways to ask for the text of a picture."""

Place = Literal["before", "after", "either"]
"""Where the picture stands: before the instruction, behind it, or as the id decides, half of the records each."""


def conversation(
    id_: str, image: str, words: Sequence[Word], *, seed: int = 0, place: Place = "before", min_words: int = 1
) -> dict[str, Any] | None:
    """The record of a picture; None where too few words were found.

    Which instruction is asked depends on `seed` and `id_` alone.

    Args:
      id_: of the record.
      image: name of its file.
      words: with places in pixels.
      seed: from 0.
      place: of the picture.
      min_words: that must have been found.
    """
    text = transcript(words).replace(IMAGE, "").strip()
    if not text or sum(len(word.text.split()) for word in words) < min_words:
        return None
    draw = int.from_bytes(hashlib.sha256(f"{seed}:{id_}".encode()).digest()[:8], "big")
    instruction = INSTRUCTIONS[draw % len(INSTRUCTIONS)]
    first = place == "before" or (place == "either" and draw // len(INSTRUCTIONS) % 2 == 0)
    question = f"{IMAGE}\n{instruction}" if first else f"{instruction}\n{IMAGE}"
    turns = [{"from": "human", "value": question}, {"from": "gpt", "value": text}]
    return {"id": id_, "image": image, "conversations": turns}
