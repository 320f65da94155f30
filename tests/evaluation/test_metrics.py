import pytest
from hypothesis import given
from hypothesis import strategies as st

from vlm_jax.evaluation import metrics
from vlm_jax.evaluation.metrics import Box


def test_exact_match_ignores_case_and_outer_whitespace_only():
    assert metrics.exact_match(" Total\n", ["total"]) == 1.0
    assert metrics.exact_match("7", ["5", "7"]) == 1.0
    assert metrics.exact_match("7.", ["7"]) == 0.0
    assert metrics.exact_match("to tal", ["total"]) == 0.0


@pytest.mark.parametrize(
    ("prediction", "answers", "score"),
    [
        ("kitten", ["sitting"], 1 - 3 / 7),
        ("  Main   Street ", ["main street"], 1.0),
        ("ab", ["ax"], 0.5),  # exactly at the threshold stays
        ("abc", ["axy"], 0.0),  # 1/3 is under it
        ("13.40", ["99.99", "13.45"], 0.8),  # the closest answer counts
        ("", ["total"], 0.0),
        ("ab" + " " * 50, ["abc"], 1 - 1 / 3),  # blanks do not buy a better score
    ],
)
def test_anls(prediction, answers, score):
    assert metrics.anls(prediction, answers) == pytest.approx(score)


@pytest.mark.parametrize(
    ("prediction", "target", "score"),
    [
        ("105", "100", 1.0),
        ("95", "100", 1.0),
        ("105.1", "100", 0.0),
        ("94.9", "100", 0.0),
        # 5 % of the target: 100 is 4.8 % of 105 away but 5.05 % of 95.2 away; the swapped order would say otherwise.
        ("95.2", "100", 1.0),
        ("100", "95.2", 0.0),
        ("0.12", "12%", 1.0),
        ("0", "0", 1.0),
        ("0.0", "0", 0.0),  # a zero target is compared as text
        ("1,000", "1000", 0.0),
        ("nan", "5", 0.0),
        ("North", "north", 1.0),
        ("-10", "10", 0.0),
    ],
)
def test_relaxed_accuracy_is_relative_to_the_target(prediction, target, score):
    assert metrics.relaxed_accuracy(prediction, [target]) == score


def test_parse_boxes_finds_every_box_in_order():
    text = "<ref>star</ref><box>[[1, 2, 300, 400], [5,6,7,8.5]]</box>"
    assert metrics.parse_boxes(text) == [Box(1, 2, 300, 400), Box(5, 6, 7, 8.5)]
    assert metrics.parse_boxes("[ 1 ,2, 3,4 ]") == [Box(1, 2, 3, 4)]
    assert metrics.parse_boxes("[[1, 2, 3]]") == []
    assert metrics.parse_boxes("[[1, 2, x, 4]]") == []
    assert metrics.parse_boxes("[[1, 2, 3, 4") == []


def test_iou():
    assert metrics.iou(Box(0, 0, 2, 2), Box(1, 1, 3, 3)) == pytest.approx(1 / 7)
    assert metrics.iou(Box(0, 0, 1, 1), Box(2, 2, 3, 3)) == 0.0
    assert metrics.iou(Box(5, 5, 1, 1), Box(5, 5, 1, 1)) == 0.0


def test_box_iou_accuracy():
    gold = ["<box>[[0, 0, 100, 100]]</box>"]
    assert metrics.box_iou_accuracy("<box>[[0, 0, 100, 50]]</box>", gold) == 1.0  # exactly 0.5
    assert metrics.box_iou_accuracy("<box>[[0, 0, 100, 49]]</box>", gold) == 0.0
    assert metrics.box_iou_accuracy("[[500, 500, 600, 600], [0, 0, 100, 100]]", gold) == 0.0  # only the first counts
    assert metrics.box_iou_accuracy("top left", gold) == 0.0


@pytest.mark.parametrize("name", metrics.METRICS)
@given(prediction=st.text(max_size=30), answer=st.text(max_size=30))
def test_every_metric_stays_in_its_range_on_any_text(name, prediction, answer):
    assert 0.0 <= metrics.METRICS[name](prediction, [answer]) <= 1.0
