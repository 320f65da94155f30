"""How conversations are stored as TFDS records: what every builder writes and `TFDSSource` reads.

Writing needs no TensorFlow: images travel as encoded bytes, and the turns as one JSON text in the `from` / `value` form
of InternVL's annotation files (`conversations` in its chat data format), which every tool of the field reads.
"""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from vlm_jax.data.conversation import Conversation

SPEAKERS = {"system": "system", "user": "human", "assistant": "gpt"}
"""Role of a `Turn` → name of the speaker in a stored conversation."""


def conversation_features() -> Any:
    """Returns the `tfds.features.FeaturesDict` of a stored conversation.

    Its features: `id` and `task` (text), `conversations` (JSON list of `{"from": "human" | "gpt" | "system", "value":
    text}`), `images` (sequence of image files of any format, as they were), `provenance` (JSON text: which raw material
    the record was made from, so that anybody can check that splits share none; empty where a builder does not say),
    and as in `Conversation` `independent`, `augment` (bool), `max_tiles` (0 where the layout says it) and `place`
    (text: where the record was written before).
    """
    import tensorflow_datasets as tfds

    return tfds.features.FeaturesDict(
        {
            "id": tfds.features.Text(),
            "task": tfds.features.Text(),
            "conversations": tfds.features.Text(),
            "images": tfds.features.Sequence(tfds.features.Image(shape=(None, None, 3))),
            "provenance": tfds.features.Text(),
            "independent": tfds.features.Scalar(np.bool_),
            "augment": tfds.features.Scalar(np.bool_),
            "max_tiles": tfds.features.Scalar(np.int32),
            "place": tfds.features.Text(),
        }
    )


def to_record(conversation: Conversation, provenance: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Returns the example that a TFDS builder yields for `conversation`.

    Images are stored as the files that they are.
    """
    turns = [{"from": SPEAKERS[turn.role], "value": turn.text} for turn in conversation.turns]
    return {
        "id": conversation.id,
        "task": conversation.task,
        "conversations": json.dumps(turns, ensure_ascii=False),
        # TFDS passes a stream through unchanged; an array would need TensorFlow to be encoded.
        "images": [io.BytesIO(image) for image in conversation.images],
        "provenance": "" if provenance is None else json.dumps(provenance, sort_keys=True),
        "independent": conversation.independent,
        "augment": conversation.augment,
        "max_tiles": conversation.max_tiles or 0,
        "place": conversation.place,
    }


def stable(example: bytes) -> bytes:
    """A serialized example with its features in one order; protocol buffers else choose one in each process."""
    from tensorflow_datasets.proto import tf_example_pb2

    return tf_example_pb2.Example.FromString(example).SerializeToString(deterministic=True)
