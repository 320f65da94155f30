import pytest

from vlm_jax.data.box_check import check_boxes
from vlm_jax.data.conversation import Conversation, RecordError, Turn


def said(text):
    return Conversation((Turn("user", "Where?"), Turn("assistant", text)), place="a.jsonl:3")


@pytest.mark.parametrize(
    "text",
    [
        "<ref>a dog</ref><box>[[0, 0, 1000, 1000]]</box>",
        "<box>[[1, 2, 3, 4], [10, 20, 30, 40]]</box> and <box>[5, 6, 7, 8]</box>",
        "<box>[[x1, y1, x2, y2]]</box>",  # explains the format
        "<box>[[0.5, 1.5, 2, 3]]</box>",
        "<quad>[[1, 2, 3, 4, 5, 6, 7, 8]]</quad>",
        "[[2000, 1, 2, 3]]",  # not marked as a box
        "<box></box><box>null</box><box>[]</box><box>[[]]</box>",
        "<box>" + "[" * 100_000 + "</box>",
        "<box>[[1, 2, 3, 2000]]",  # no end
    ],
)
def test_fine(text):
    check_boxes(said(text))


@pytest.mark.parametrize(
    "box",
    [
        "[[0, 0, 1001, 5]]",
        "[[-1, 0, 5, 5]]",
        "[[1, 2, 3, 4], [5, 6, 7, 4000]]",
        "[0, 0, 1920, 1080]",
        "[[1, 2, 3, NaN]]",
    ],
)
def test_outside(box):
    with pytest.raises(RecordError) as raised:
        check_boxes(said(f"It is <box>[[1, 2, 3, 4]]</box> or <box>{box}</box>."))
    assert raised.value.place == "a.jsonl:3"
    assert raised.value.reason == "box"
    assert "conversations[1].value: <box>[[" in raised.value.detail


def test_quadrilaterals_and_questions():
    with pytest.raises(RecordError, match="<quad>"):
        check_boxes(said("<quad>[[1, 2, 3, 4, 5, 6, 7, 1234]]</quad>"))
    asked = Conversation((Turn("user", "What is in <box>[[1, 2, 3, 1300]]</box>?"), Turn("assistant", "A dog.")))
    with pytest.raises(RecordError, match="1300"):
        check_boxes(asked)
