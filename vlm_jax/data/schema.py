"""How conversations are stored as TFDS records: one feature dict, and the way there and back.

Builders write with `conversation_features` and `to_record`; `TFDSSource` reads with `raw_image_decoders` and
`from_record`. Neither direction needs TensorFlow: images travel as encoded bytes, and the turns as one JSON text in the
`from` / `value` form of InternVL's annotation files (`specs`: chat data format), which every tool of the field reads.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.errors import UserError

SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}
"""Role of a `Turn` → name of the speaker in a stored conversation."""

ROLES = {speaker: role for role, speaker in SPEAKERS.items()}
"""The inverse of `SPEAKERS`."""


def conversation_features() -> Any:
    """Returns the `tfds.features.FeaturesDict` of a stored conversation.

    Its features: `id` and `task` (text), `conversations` (JSON list of `{"from": "human" | "gpt" | "system", "value":
    text}`), `images` (sequence of RGB PNG files), `provenance` (JSON text: which raw material the record was made from,
    so that anybody can check that splits share none; empty where a builder does not say).
    """
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "task": tfds.features.Text(),
            "conversations": tfds.features.Text(),
            "images": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3), encoding_format="png")),
            "provenance": tfds.features.Text(),
        }
    )


class KeepEncoded:
    """A TFDS decoder that gives the stored bytes of a feature back, also for a feature inside a `Sequence`.

    `tfds.decode.SkipDecoding` (4.9.10) has no NumPy method for sequences. This class has the methods that TFDS calls
    and has no base class there, so that importing this file is cheap and a data source can be pickled to workers.
    """

    def setup(self, *, feature: Any) -> None:
        """TFDS names the feature here; keeping the bytes needs nothing of it."""

    def decode_example_np(self, serialized_example: Any) -> Any:
        """Returns the bytes of one example."""
        return serialized_example

    def decode_batch_example_np(self, serialized_example: Any) -> Any:
        """Returns the object array of bytes of a sequence."""
        return serialized_example


def raw_image_decoders() -> dict[str, Any]:
    """Returns the `decoders` argument for `as_data_source` that leaves `images` as a sequence of encoded `bytes`."""
    return {"images": KeepEncoded()}


def to_record(conversation: Conversation, provenance: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the example that a TFDS builder yields for `conversation`.

    Images must be PNG files (`Conversation.images` holds encoded bytes); they are stored as they are.
    """
    turns = [{"from": SPEAKERS[turn.role], "value": turn.text} for turn in conversation.turns]
    return {
        "id": conversation.id,
        "task": conversation.task,
        "conversations": json.dumps(turns, ensure_ascii=False),
        # TFDS passes a stream through unchanged; an array would need TensorFlow to be encoded.
        "images": [io.BytesIO(image) for image in conversation.images],
        "provenance": "" if provenance is None else json.dumps(provenance, sort_keys=True),
    }


def from_record(record: Mapping[str, Any]) -> Conversation:
    """Returns the conversation of a record read with `raw_image_decoders`.

    Raises:
      UserError: naming the record, if a field is missing or `conversations` is not in the documented form.
    """
    name = _text(record.get("id", "?"))
    missing = [key for key in ("id", "conversations", "images") if key not in record]
    if missing:
        raise UserError(f"record '{name}': no field '{missing[0]}'; a conversation needs id, conversations and images")
    try:
        stored = json.loads(_text(record["conversations"]))
        turns = tuple(Turn(ROLES[turn["from"]], turn["value"]) for turn in stored)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f"record '{name}': conversations must be a JSON list of {{'from': 'human' | 'gpt' | 'system', "
            f"'value': text}} ({type(error).__name__}: {error})"
        ) from None
    return Conversation(
        turns=turns,
        images=tuple(bytes(image) for image in record["images"]),
        id=name,
        task=_text(record.get("task", "")),
    )


def _text(value: Any) -> str:
    """TFDS gives text features back as bytes."""
    return value.decode("utf-8") if isinstance(value, bytes) else str(value)
