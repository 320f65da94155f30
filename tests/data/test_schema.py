import pytest

from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.schema import from_record, to_record
from vlm_jax.errors import UserError

CONVERSATION = Conversation(
    turns=(Turn("system", "Be brief."), Turn("user", "<image>\nWas ist das?"), Turn("assistant", "ein Käse")),
    images=(b"\x89PNG one", b"\x89PNG two"),
    id="a/1",
    task="photo",
)


def as_read(record):
    """What TFDS gives back: text as bytes, streams as bytes."""
    return {
        key: [image.read() for image in value] if key == "images" else value.encode() for key, value in record.items()
    }


def test_a_record_gives_the_conversation_back():
    assert from_record(as_read(to_record(CONVERSATION, {"digits": [1]}))) == CONVERSATION


def test_provenance_is_json_with_sorted_keys():
    assert to_record(CONVERSATION, {"b": 1, "a": [2]})["provenance"] == '{"a": [2], "b": 1}'
    assert to_record(CONVERSATION)["provenance"] == ""


@pytest.mark.parametrize("stored", ["[", '[{"from": "cat", "value": "x"}]', '[{"from": "human"}]', "3"])
def test_a_malformed_conversation_names_the_record(stored):
    record = as_read(to_record(CONVERSATION)) | {"conversations": stored.encode()}
    with pytest.raises(UserError, match="record 'a/1': conversations"):
        from_record(record)


def test_a_missing_field_is_named():
    record = as_read(to_record(CONVERSATION))
    del record["images"]
    with pytest.raises(UserError, match="'a/1': no field 'images'"):
        from_record(record)
