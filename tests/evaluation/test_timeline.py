import re

import pytest

from vlm_jax.evaluation.charts import MAX_POINTS
from vlm_jax.evaluation.timeline import timeline

REPORT = {"wall_seconds": 100.0, "stages": {"a": {"seconds": 20.0}, "b": {"seconds": 30.0}}}


def entry(seconds, rate, **more):
    return {"seconds": seconds, "tokens_per_second": rate, "useful_tokens": 0.5, "useful_tiles": 1.0, **more}


def places(line):
    """Where the horizontal stretches of a path lie: (from, to, height)."""
    found, x, y = [], 0.0, 0.0
    for letter, numbers in re.findall(r"([MVH])([-\d. ]+)", line.path):
        values = [float(number) for number in numbers.split()]
        if letter == "M":
            x, y = values
        elif letter == "V":
            (y,) = values
        else:
            found.append((x, values[0], y))
            (x,) = values
    return found


def test_stages_lie_where_they_were_and_the_rest_has_names():
    drawn = timeline(REPORT, {"a": [entry(25.0, 1.0), entry(30.0, 1.0)], "b": [entry(70.0, 1.0)]})
    assert [(span.name, span.stage, span.left, span.width) for span in drawn.spans] == [
        ("before: data, start", None, 0.0, 10.0),
        ("a", 0, 10.0, 20.0),
        ("between stages", None, 30.0, 10.0),
        ("b", 1, 40.0, 30.0),
        ("after: evaluation, export", None, 70.0, 30.0),
    ]
    assert sum(span.seconds for span in drawn.spans) == 100.0


def test_questions_asked_on_the_way_are_time_of_their_stage_and_those_at_its_end_are_not():
    asked = {"validation": {"mean": 0.5, "seconds": 4.0}}
    drawn = timeline(REPORT, {"a": [entry(20.0, 1.0, **asked), entry(34.0, 1.0, **asked)], "b": [entry(70.0, 1.0)]})
    begins = {span.name: (span.left, span.left + span.width) for span in drawn.spans}
    assert begins["a"] == (10.0, 34.0)
    assert begins["between stages"] == (34.0, 40.0)


def test_without_times_stages_follow_each_other_and_nothing_is_drawn_over_time():
    drawn = timeline(REPORT, {"a": [{"step": 1, "loss": 1.0}]})
    assert [(span.name, span.left, span.width) for span in drawn.spans] == [
        ("a", 0.0, 20.0),
        ("b", 20.0, 30.0),
        ("after: evaluation, export", 50.0, 50.0),
    ]
    assert drawn.charts == []
    assert [span.name for span in timeline({"wall_seconds": 9.0, "stages": {}}, {}).spans] == ["all"]


def test_throughput_is_a_level_per_stretch_and_its_mean_is_weighted_by_time():
    drawn = timeline(REPORT, {"a": [entry(20.0, 100.0), entry(30.0, 300.0)], "b": [entry(70.0, 400.0)]})
    (line,) = drawn.charts[0].lines
    top = {label: place for place, label in drawn.charts[0].y_ticks}
    assert [(a, b) for a, b, _ in places(line)] == [(100.0, 200.0), (200.0, 300.0), (400.0, 700.0)]
    assert places(line)[2][2] == pytest.approx(10 * top["400"])
    assert line.mean == pytest.approx((10 * 100 + 10 * 300 + 30 * 400) / 50)


def test_useful_shares_are_drawn_from_nothing_to_all():
    drawn = timeline(REPORT, {"a": [entry(30.0, 1.0)]})
    tokens, tiles = drawn.charts[1].lines
    assert (tokens.name, tokens.mean, places(tokens)[0][2]) == ("tokens", 0.5, 500.0)
    assert (tiles.name, tiles.mean, places(tiles)[0][2]) == ("tile slots", 1.0, 0.0)


def test_a_long_run_is_drawn_with_few_points_and_the_same_mean():
    entries = [entry(10 + i / 100, float(i % 7)) for i in range(1, 2001)]
    (line,) = timeline(REPORT, {"a": entries}).charts[0].lines
    assert len(places(line)) <= MAX_POINTS
    assert line.mean == pytest.approx(sum(i % 7 for i in range(1, 2001)) / 2000)
    assert places(line)[-1][1] == pytest.approx(300.0)


def test_lines_that_hold_no_numbers_or_go_back_in_time_are_left_out():
    odd = [
        entry(15.0, 5.0),
        entry(14.0, 900.0),
        entry(14.5, 900.0),
        entry(None, 900.0),
        entry(20.0, float("nan")),
        entry(30.0, 5.0),
    ]
    (line,) = timeline(REPORT, {"a": odd}).charts[0].lines
    assert line.mean == 5.0
    assert [(a, b) for a, b, _ in places(line)] == [(100.0, 150.0), (150.0, 300.0)]


@pytest.mark.parametrize(
    ("wall", "labels"),
    [(9.0, ["0", "2.0 s", "4.0 s"]), (1155.0, ["0", "5 min", "10 min"]), (20_000.0, ["0", "1 h", "2 h"])],
)
def test_the_axis_has_round_ticks(wall, labels):
    ticks = timeline({"wall_seconds": wall, "stages": {}}, {}).ticks
    assert [label for _, label in ticks[:3]] == labels
    assert len(ticks) <= 8
    assert all(0 <= place <= 100 for place, _ in ticks)


def test_a_run_of_years_has_few_ticks():
    assert len(timeline({"wall_seconds": 1e8, "stages": {}}, {}).ticks) <= 8
