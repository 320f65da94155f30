import pytest

from vlm_jax.data.recipes.response_formats import (
    box_text,
    caption_question,
    phrase_question,
    region_question,
    with_options,
)
from vlm_jax.errors import UserError


@pytest.mark.parametrize(
    ("box", "size", "square", "text"),
    [
        ((0, 320, 150, 380), (500, 500), False, "[0.0, 0.64, 0.3, 0.76]"),
        ((40, 57, 630, 71), (1000, 100), False, "[0.04, 0.57, 0.63, 0.71]"),
        ((0, 0, 200, 100), (200, 100), True, "[0.0, 0.25, 1.0, 0.75]"),
        ((0, 0, 100, 200), (100, 200), True, "[0.25, 0.0, 0.75, 1.0]"),
        ((1, 1, 1, 1), (3, 3), False, "[0.33, 0.33, 0.33, 0.33]"),
    ],
)
def test_boxes(box, size, square, text):
    assert box_text(box, *size, square=square) == text


@pytest.mark.parametrize("box", [(-1, 0, 5, 5), (0, 0, 11, 5), (6, 0, 5, 5), (0, 0, 5, 11), (0, float("nan"), 5, 5)])
def test_boxes_that_are_none(box):
    with pytest.raises(UserError, match=r"box: .* is no box in a picture of 10 x 10 pixels"):
        box_text(box, 10, 10)


def test_questions():
    assert caption_question() == "Provide a one-sentence caption for the provided image."
    assert caption_question(["STOP", "12"]).splitlines()[1] == "Reference OCR token: STOP, 12"
    assert region_question("[0.0, 0.1, 0.2, 0.3]").endswith("for this region: [0.0, 0.1, 0.2, 0.3].")
    assert phrase_question("a red car. ").endswith("this sentence describes: a red car.")
    assert with_options("Which?", ["one", "two"]) == "Which?\nA. one\nB. two"
    for options in (["one"], ["x"] * 27):
        with pytest.raises(UserError, match=f"options: a question has 2 to 26, got {len(options)}"):
            with_options("Which?", options)
