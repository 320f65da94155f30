import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_jax.data.box_check import check_boxes
from vlm_jax.data.boxes import (
    Box,
    Point,
    ViewPoint,
    format_box,
    format_boxes,
    format_points,
    format_reference,
    format_view_point,
    parse_boxes,
    parse_points,
    parse_references,
    parse_view_points,
    problem_of,
    to_pixels,
    to_thousandths,
)
from vlm_jax.data.conversation import Conversation, RecordError, Turn
from vlm_jax.errors import UserError

SIZE = (640, 480)


def test_both_roundings():
    assert to_thousandths((1, 2, 639, 479), SIZE) == [2, 4, 998, 998]  # 1.5625, 4.17, 998.4, 997.9
    assert to_thousandths((1, 2, 639, 479), SIZE, "floor") == [1, 4, 998, 997]
    assert to_thousandths((0, 0, *SIZE), SIZE) == to_thousandths((0, 0, *SIZE), SIZE, "floor") == [0, 0, 1000, 1000]
    assert to_thousandths((1, 3), (2000, 2000)) == [0, 2]  # halves go to the even number
    for size, pixels in (((0, 5), (1, 1)), (SIZE, (float("nan"), 1))):
        with pytest.raises(UserError, match="no place in a picture"):
            to_thousandths(pixels, size)


@given(st.tuples(st.integers(1, 5000), st.integers(1, 5000)), st.lists(st.floats(0, 1), min_size=4, max_size=4))
def test_there_and_back(size, shares):
    pixels = [share * size[number % 2] for number, share in enumerate(shares)]
    for rounding, lost in (("round", 0.5), ("floor", 1.0)):
        back = to_pixels(to_thousandths(pixels, size, rounding), size)
        for number, (one, other) in enumerate(zip(pixels, back, strict=True)):
            assert abs(one - other) <= lost * size[number % 2] / 1000 * (1 + 1e-6) + 1e-9


def test_formats():
    assert format_box((64, 48, 320, 240), SIZE) == "<box>[[100, 100, 500, 500]]</box>"
    text = format_reference("a dog") + format_boxes([(64, 48, 320, 240), (1, 2, 639, 479)], SIZE, "floor")
    assert text == "<ref>a dog</ref><box>[[100, 100, 500, 500], [1, 4, 998, 997]]</box>"
    assert format_points([(64, 48), (320, 240)], SIZE) == "<point>[[100, 100], [500, 500]]</point>"
    assert format_view_point(1, "CAM_FRONT", (1344, 448), (2688, 896)) == "<c1,CAM_FRONT,[500,500]>"


def test_what_is_written_is_read():
    boxes = [(64, 48, 320, 240), (1, 2, 639, 479)]
    first, second = (format_reference(name) for name in "ab")
    text = f"Both: {first}{format_boxes(boxes, SIZE)}; {second} {format_points([boxes[0][:2]], SIZE)}"
    assert parse_references(text) == [
        ("a", [Box(100, 100, 500, 500), Box(2, 4, 998, 998)]),
        ("b", [Point(100, 100)]),
    ]
    assert parse_boxes(text) == [Box(100, 100, 500, 500), Box(2, 4, 998, 998)]
    assert parse_points(text + "[[1, 2]] <point>[3,4.5]</point>") == [Point(100, 100), Point(3, 4.5)]
    views = format_view_point(1, "CAM_FRONT", (1344, 448), (2688, 896)) + " and <c12, CAM_BACK_LEFT, [3.5, 4]>"
    assert parse_view_points(views) == [ViewPoint(1, "CAM_FRONT", 500, 500), ViewPoint(12, "CAM_BACK_LEFT", 3.5, 4)]
    assert parse_references("<ref>a</ref> is <box>[[1, 2, 3, 4]]</box>") == []


@pytest.mark.parametrize(
    ("numbers", "problem"),
    [
        ((0, 0, 1000, 1000), ""),
        ((5, 5, 5, 5), ""),
        ((1, 2), ""),
        ((9, 9, 1, 1, 5, 5), ""),  # a polygon has no order
        ((0, 0, 1000.5, 10), "lies outside of the picture"),
        ((-1, 0), "lies outside of the picture"),
        ((float("nan"), 0), "lies outside of the picture"),
        ((5, 5, 4, 6), "corners in the wrong order"),
        ((5, 5, 6, 4), "corners in the wrong order"),
    ],
)
def test_problems(numbers, problem):
    assert problem in problem_of(numbers)
    assert bool(problem_of(numbers)) == bool(problem)


def test_the_check_of_records_knows_points_and_swapped_corners():
    for text in ("<point>[[10, 1001]]</point>", "<box>[[50, 50, 40, 60]]</box>"):
        conversation = Conversation((Turn("user", "?"), Turn("assistant", text)), place="a:1")
        with pytest.raises(RecordError, match=r"a:1: conversations.1..value: <") as caught:
            check_boxes(conversation)
        assert caught.value.reason == "box"
    check_boxes(Conversation((Turn("user", "?"), Turn("assistant", "<point>[[10, 1000]]</point>"))))
