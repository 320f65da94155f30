import json

from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.formats.schema import conversation_features, to_record
from vlm_jax.data.formats.tfds import turns_from_json

CONVERSATION = Conversation(
    turns=(Turn("system", "Be brief."), Turn("user", "<image>\nWas ist das?"), Turn("assistant", "ein Käse")),
    images=(b"\x89PNG one", b"\x89PNG two"),
    id="a/1",
    task="photo",
)


def test_turns_are_stored_in_the_form_that_sources_read():
    record = to_record(CONVERSATION)
    assert turns_from_json(record["conversations"].encode(), "a/1", images=1) == CONVERSATION.turns
    assert [message["from"] for message in json.loads(record["conversations"])] == ["system", "human", "gpt"]


def test_images_are_stored_as_they_are():
    assert tuple(image.read() for image in to_record(CONVERSATION)["images"]) == CONVERSATION.images


def test_a_record_has_exactly_the_features():
    record = to_record(CONVERSATION)
    assert set(record) == set(conversation_features())
    assert (record["id"], record["task"]) == ("a/1", "photo")


def test_provenance_is_json_with_sorted_keys():
    assert to_record(CONVERSATION, {"b": 1, "a": [2]})["provenance"] == '{"a": [2], "b": 1}'
    assert to_record(CONVERSATION)["provenance"] == ""
