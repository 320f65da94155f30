import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.data.recipes.drawn_text import block, line, page
from vlm_jax.data.recipes.ocr_layout import page_angle, paragraphs, transcript
from vlm_jax.data.recipes.ocr_words import Word, word_of_corners

LEFT = ["The harbour opens at", "seven in the morning", "and closes at dusk, when", "the last ferry is gone."]
RIGHT = ["Tickets are sold on", "board, near the stern;", "children under six", "travel free of charge."]


def test_lines_of_a_paragraph_are_joined():
    assert transcript(page(block(LEFT, 40, 30, 20))) == " ".join(LEFT)


def test_nothing_gives_nothing():
    assert transcript([]) == ""
    assert transcript(page(line("Alone", 5, 50, 12))) == "Alone"


@pytest.mark.parametrize("scale", [0.25, 1, 7])
def test_columns_are_read_one_by_one(scale):
    boxes = block(LEFT, 40 * scale, 30 * scale, 20 * scale) + block(RIGHT, 420 * scale, 35 * scale, 20 * scale)
    assert transcript(page(boxes)) == " ".join(LEFT) + "\n" + " ".join(RIGHT)


def test_what_runs_over_both_columns_parts_them():
    boxes = line("Ferries of the northern harbour and its neighbour", 40, 60, 24)
    boxes += block(LEFT[:2], 40, 120, 18) + block(RIGHT[:2], 420, 120, 18)
    boxes += line("From October to March there is no ferry on a Sunday", 40, 260, 22)
    boxes += block(LEFT[2:], 40, 320, 18) + block(RIGHT[2:], 420, 320, 18)
    assert transcript(page(boxes)).split("\n") == [
        "Ferries of the northern harbour and its neighbour",
        " ".join(LEFT[:2]),
        " ".join(RIGHT[:2]),
        "From October to March there is no ferry on a Sunday",
        " ".join(LEFT[2:]),
        " ".join(RIGHT[2:]),
    ]


def test_columns_above_a_line_are_read_before_those_below_it():
    """Also where the last column begins highest."""
    tops = {"one": (40, 60), "two": (300, 62), "three": (560, 50), "four": (40, 220), "five": (300, 222)}
    boxes = line("a line over all of the columns that stand above and below", 40, 160, 20)
    for name, (left, top) in tops.items():
        boxes += block([f"column {name}", "goes on"], left, top, 16)
    read = transcript(page(boxes)).split("\n")
    assert [text.split()[1] for text in read] == ["one", "two", "three", "line", "four", "five"]


@pytest.mark.parametrize("degrees", [-17, -6, -2, 1, 3, 9, 18])
def test_skew(degrees):
    boxes = block(LEFT + RIGHT, 100, 80, 20)
    assert transcript(page(boxes, degrees)) == " ".join(LEFT + RIGHT)


@pytest.mark.parametrize("degrees", [-10, 10])
def test_skewed_columns(degrees):
    boxes = block(LEFT, 40, 30, 20) + block(RIGHT, 420, 30, 20)
    assert transcript(page(boxes, degrees)) == " ".join(LEFT) + "\n" + " ".join(RIGHT)


def test_the_angle_is_found():
    boxes = block(LEFT + RIGHT, 100, 80, 20)
    for degrees in (-15, -4, 5, 12):
        assert math.degrees(page_angle(page(boxes, degrees))) == pytest.approx(degrees, abs=1.1)
    assert page_angle(page(boxes)) == 0
    places = [(90 * column, 30 * row) for row in range(9) for column in range(9)]
    table = [(f"{x}.{y}", (x, y, x + 30, y + 14)) for x, y in places]
    assert page_angle(page(table)) == 0  # though its diagonals are straight too


def test_corners_say_the_angle_of_a_single_word():
    def turned(text, x, y):
        cos, sin = math.cos(0.5), math.sin(0.5)
        corners = [(x + dx, y + dy) for dx, dy in ((0, 0), (60, 0), (60, 20), (0, 20))]
        return word_of_corners(text, [(cx * cos - cy * sin, cx * sin + cy * cos) for cx, cy in corners])

    words = [turned("last", 240, 0), turned("in", 80, 0), turned("a", 160, 0), turned("ON", 0, 0)]
    assert words[0].angle == pytest.approx(0.5)
    assert (words[0].width, words[0].height) == pytest.approx((60, 20))
    assert transcript(words) == "ON in a last"


def test_sizes_part_a_headline_from_its_text():
    boxes = line("GRAND SALE", 40, 80, 60) + block(["on everything that is", "left in the store"], 42, 86, 16)
    assert transcript(page(boxes)) == "GRAND SALE\non everything that is left in the store"


def test_small_print_beside_large_letters_is_not_of_their_line():
    boxes = line("MENU", 40, 100, 80) + line("since 1921", 228, 80, 16)
    assert sorted(paragraphs(page(boxes))) == ["MENU", "since 1921"]


def test_marks_without_letters_stay_in_their_line():
    assert transcript(page(line("Monday - Friday : 9 - 17", 10, 40, 20))) == "Monday - Friday : 9 - 17"


@pytest.mark.parametrize("degrees", [0, -12, 12])
def test_paragraphs_are_parted_by_a_wide_gap(degrees):
    """Also where the page is turned, and the boxes around its words are higher than the words."""
    boxes = block(LEFT[:2], 40, 30, 20) + block(LEFT[2:] + RIGHT, 40, 125, 20)
    assert paragraphs(page(boxes, degrees)) == [" ".join(LEFT[:2]), " ".join(LEFT[2:] + RIGHT)]


words = st.builds(
    Word,
    st.sampled_from(["a", "Word", "-", "pq", "1999"]),
    st.integers(0, 900),
    st.integers(0, 900),
    st.integers(1, 300),
    st.integers(1, 90),
    st.sampled_from([None, None, 0.3, -1.2]),
)


@settings(max_examples=25)
@given(st.lists(words, max_size=25, unique_by=lambda word: word[1:3]), st.randoms())
def test_any_words(found, random):
    """Every word is there once, and the order in which they come changes nothing."""
    text = transcript(found)
    assert sorted(text.split()) == sorted(word.text for word in found)
    shuffled = list(found)
    random.shuffle(shuffled)
    assert transcript(shuffled) == text
