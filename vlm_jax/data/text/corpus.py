"""The text that a tokenizer is trained on where no model brings one."""

from __future__ import annotations

from collections.abc import Iterator

from vlm_jax.data.sources import PeekableSource, Source, single
from vlm_jax.data.text.render import render
from vlm_jax.data.text.templates import Template
from vlm_jax.errors import UserError


def training_text(source: Source, template: Template, at_most: int) -> Iterator[str]:
    """Text as the model will see it, system prompt and role names included, of records evenly spread over the data.

    Records that cannot be used are passed over: they are counted where sizes are measured.

    Args:
      source: the conversations.
      template: the prompt format.
      at_most: number of records that are read.
    """
    for place in range(0, len(source), len(source) // at_most + 1):
        part, number = single(source, place)
        try:
            conversation = part.peek(number) if isinstance(part, PeekableSource) else part[number]
            places = [1] * len(conversation.images)
            spans = render(conversation.turns, template, places, independent=conversation.independent)
        except UserError:
            continue
        yield from (span.text for span in spans if span.image is None)
