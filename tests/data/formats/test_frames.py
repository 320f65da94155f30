import numpy as np
import pytest

from vlm_jax.data.formats.frames import FrameRange, choose_frames, frame_count


def test_the_number_follows_from_the_name_and_all_numbers_occur():
    counts = [frame_count(f"{number}:a.mp4", 1000, FrameRange()) for number in range(2000)]
    assert counts == [frame_count(f"{number}:a.mp4", 1000, FrameRange()) for number in range(2000)]
    assert set(counts) == set(range(8, 33))
    assert np.bincount(counts)[8:].min() > 40  # of 80 expected
    assert frame_count("x", 3, FrameRange()) == 3
    assert frame_count("\ud800", 1000, FrameRange(12, 12)) == 12


@pytest.mark.parametrize(
    ("available", "count", "expected"),
    [
        (16, 8, [0, 2, 4, 6, 8, 10, 12, 14]),
        (10, 3, [1, 4, 7]),  # intervals 0..2, 3..5, 6..9
        (100, 1, [49]),
        (5, 5, [0, 1, 2, 3, 4]),
        (2, 4, [0, 1, 1, 1]),
    ],
)
def test_middles_of_intervals(available, count, expected):
    assert choose_frames(available, count).tolist() == expected


def test_every_frame_of_an_interval_may_be_drawn():
    drawn = np.stack([choose_frames(10, 3, np.random.default_rng(seed)) for seed in range(200)])
    assert [sorted(set(column.tolist())) for column in drawn.T] == [[0, 1, 2], [3, 4, 5], [6, 7, 8, 9]]
    assert (choose_frames(2, 4, np.random.default_rng(0)) == [0, 1, 1, 1]).all()
