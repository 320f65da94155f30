"""Which frames of a video are shown: how many follows from the record, which ones may be drawn.

InternVL draws both anew whenever it reads a record (`get_frame_indices` and `read_frames_*` of its
`internvl/train/dataset.py`): a number from 8 to 32, equal intervals, and one frame at random in each. Rows are planned
before anything is read, so here the number is drawn once and for all from the record's name, and only the choice in
each interval is drawn anew. (The reference never picks the last frame of an interval; here each is equally likely.)
"""

from __future__ import annotations

import hashlib
from typing import NamedTuple

import numpy as np


class FrameRange(NamedTuple):
    """How many frames stand for a video (`min_num_frame` and `max_num_frame` of the reference), drawn once a record.

    Attributes:
      least, most: both inclusive; a video of fewer frames gives all it has.
    """

    least: int = 8
    most: int = 32


FRAMES = FrameRange()


def frame_count(name: str, available: int, frames: FrameRange) -> int:
    """Number of frames that stand for a video.

    Args:
      name: of the record; the same name always gives the same number, each in the range equally likely.
      available: frames of the video.
      frames: the range.
    """
    draw = int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big")
    return min(frames.least + draw % (frames.most - frames.least + 1), available)


def choose_frames(available: int, count: int, rng: np.random.Generator | None = None) -> np.ndarray:
    """Numbers of the frames: one of each of `count` nearly equal intervals.

    Args:
      available: frames that there are, at least one. Where they are fewer than `count`, the last is repeated, as in the
        reference.
      count: frames wanted.
      rng: draws in each interval; None takes the middle of each.

    Returns:
      int64 [count], ascending.
    """
    bounds = np.linspace(0, available, min(count, available) + 1).astype(np.int64)
    first, last = bounds[:-1], bounds[1:] - 1
    chosen = (first + last) // 2 if rng is None else rng.integers(first, last + 1)
    return np.concatenate([chosen, np.full(count - len(chosen), available - 1, np.int64)])
