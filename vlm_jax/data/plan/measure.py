"""Looking at every record of a source, in parallel: how large it is for the model, and whether it can be used."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import NamedTuple

import numpy as np

from vlm_jax.data.box_check import check_boxes
from vlm_jax.data.conversation import Conversation, RecordError
from vlm_jax.data.images import ImageError, decode_image
from vlm_jax.data.prepare import Preparer, Size
from vlm_jax.data.processes import in_order
from vlm_jax.data.sources import PeekableSource, Source, single
from vlm_jax.errors import UserError

WORTH_PROCESSES = 4096
"""Fewer records are looked at sooner than processes have started."""

_JOB, _DEEP_JOB = 512, 64  # records that a process looks at, at a time; with decoded images they take seconds


class Measured(NamedTuple):
    """What was found of n records that follow one another.

    Attributes:
      sizes: int32 [n, 4]; `Size` and the number of images; zeros of a record that cannot be used.
      tasks: of each; '' of a record that cannot be used.
      bad: by its number in the source, what is wrong with every record that cannot be used.
    """

    sizes: np.ndarray
    tasks: list[str]
    bad: dict[int, RecordError]


def measure(
    source: Source,
    preparer: Preparer,
    *,
    deep: bool = False,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> Measured:
    """Looks at every record of a source.

    Args:
      source: the records; at least one.
      preparer: knows sizes.
      deep: decode every image; otherwise headers are enough.
      workers: processes; 0 works in this one, None takes one for every core where there is enough to do.
      advance: called with the number of records that were looked at since its last call.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if deep or len(source) >= WORTH_PROCESSES else 0
    size = _DEEP_JOB if deep else _JOB
    jobs = [range(first, min(first + size, len(source))) for first in range(0, len(source), size)]
    found = []
    for job, part in zip(jobs, in_order(_Looker(source, preparer, deep), jobs, workers), strict=True):
        found.append(part)
        advance(len(job))
    return Measured(
        np.concatenate([part.sizes for part in found]),
        [task for part in found for task in part.tasks],
        {number: error for part in found for number, error in part.bad.items()},
    )


@dataclasses.dataclass(frozen=True)
class _Looker:
    """Looks at a stretch of a source."""

    source: Source
    preparer: Preparer
    deep: bool

    def __call__(self, stretch: range) -> Measured:
        sizes, tasks, bad = np.zeros((len(stretch), 4), np.int32), [], {}
        for place, number in enumerate(stretch):
            task = ""
            try:
                conversation, size = measure_record(self.source, number, self.preparer, deep=self.deep)
                sizes[place], task = (*size, len(conversation.images)), conversation.task
            except RecordError as error:
                bad[number] = error
            tasks.append(task)
        return Measured(sizes, tasks, bad)


def measure_record(source: Source, number: int, preparer: Preparer, *, deep: bool = False) -> tuple[Conversation, Size]:
    """One record and its size; `deep` decodes its images, otherwise the beginnings of their files are enough.

    Raises:
      RecordError: it cannot be used.
    """
    source, number = single(source, number)
    if not deep and isinstance(source, PeekableSource):
        try:
            return _checked(source.peek(number), preparer)
        except RecordError:  # a picture whose header is long; or a bad record, which the whole one says again
            pass
    conversation, size = _checked(source[number], preparer)
    for image, data in enumerate(conversation.images if deep else ()):
        try:
            decode_image(data, f"image {image}", preparer.max_megapixels)
        except UserError as error:
            reason = error.reason if isinstance(error, ImageError) else "image"
            raise RecordError(conversation.name, reason, str(error)) from None
    return conversation, size


def _checked(conversation: Conversation, preparer: Preparer) -> tuple[Conversation, Size]:
    try:
        size = preparer.measure(conversation)
        check_boxes(conversation)
    except RecordError as error:
        error.task = conversation.task
        raise
    return conversation, size
