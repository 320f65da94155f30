"""The survey: every record of a source looked at afresh, in parallel, for `vlm_jax.data.check` and `.show`.

It finds what the index finds (`vlm_jax.data.index`), and the number of images. But the index is kept from run to run,
and its file does not know when a picture has vanished or come back; a survey always looks.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Iterator
from typing import NamedTuple

import numpy as np

from vlm_jax.data.box_check import check_boxes
from vlm_jax.data.conversation import Conversation, RecordError
from vlm_jax.data.images import ImageError, decode_image
from vlm_jax.data.index import BAD, Index
from vlm_jax.data.prepare import Preparer, Size
from vlm_jax.data.processes import in_order
from vlm_jax.data.sources import ManySources, PeekableSource, Source
from vlm_jax.errors import UserError

_JOB = 64  # records that a process looks at, at a time; with decoded images they take seconds
_WORTH_PROCESSES = 2048  # fewer records are looked at sooner than processes have started


@dataclasses.dataclass(frozen=True)
class Survey:
    """What was found (n records).

    Attributes:
      index: sizes, tasks, and what is wrong with which record.
      images: int32 [n]; pictures of every record, 0 of a bad one.
      groups: names under which records are counted, in the source's order: its parts, or the tasks of a single one.
      group_ids: int32 [n]; index into `groups`.
    """

    index: Index
    images: np.ndarray
    groups: tuple[str, ...]
    group_ids: np.ndarray


class _Seen(NamedTuple):
    """Of records that follow one another: tokens, tiles, least and images, int32 [n, 4]; tasks; what is wrong."""

    sizes: np.ndarray
    tasks: list[str]
    bad: dict[int, RecordError]


@dataclasses.dataclass(frozen=True)
class _Looker:
    """Looks at a stretch of a source."""

    source: Source
    preparer: Preparer
    deep: bool

    def __call__(self, stretch: range) -> _Seen:
        sizes, tasks, bad = np.zeros((len(stretch), 4), np.int32), [], {}
        for place, number in enumerate(stretch):
            task = ""
            try:
                conversation, size = examine(self.source, number, self.preparer, deep=self.deep)
                sizes[place], task = (*size, len(conversation.images)), conversation.task
            except RecordError as error:
                bad[number] = error
            tasks.append(task)
        return _Seen(sizes, tasks, bad)


def examine(source: Source, number: int, preparer: Preparer, *, deep: bool = False) -> tuple[Conversation, Size]:
    """One record and its size; `deep` decodes its images, otherwise their headers are enough.

    Raises:
      RecordError: it cannot be used.
    """
    source, number = single(source, number)
    if not deep and isinstance(source, PeekableSource):
        try:
            conversation = source.peek(number)
            size = preparer.measure(conversation)
            check_boxes(conversation)
            return conversation, size
        except RecordError:  # a picture whose header is long; or a bad record, which the whole one says again
            pass
    conversation = source[number]
    size = preparer.measure(conversation)
    check_boxes(conversation)
    for image, data in enumerate(conversation.images if deep else ()):
        try:
            decode_image(data, f"image {image}", preparer.max_megapixels)
        except UserError as error:
            reason = error.reason if isinstance(error, ImageError) else "image"
            raise RecordError(conversation.name, reason, str(error)) from None
    return conversation, size


def survey(
    source: Source,
    preparer: Preparer,
    *,
    deep: bool = False,
    workers: int | None = None,
    advance: Callable[[int], None] = lambda n: None,
) -> Survey:
    """Looks at every record of a source.

    Args:
      source: the records; at least one.
      preparer: knows sizes.
      deep: decode every image.
      workers: processes; 0 works in this one, None takes one for every core where there is enough to do.
      advance: called with the number of records that were looked at since its last call.
    """
    if workers is None:
        workers = len(os.sched_getaffinity(0)) if deep or len(source) >= _WORTH_PROCESSES else 0
    jobs = [range(first, min(first + _JOB, len(source))) for first in range(0, len(source), _JOB)]
    seen = []
    for job, result in zip(jobs, in_order(_Looker(source, preparer, deep), jobs, workers), strict=True):
        seen.append(result)
        advance(len(job))
    sizes = np.concatenate([part.sizes for part in seen])
    found = [task for part in seen for task in part.tasks]
    bad = {number: error for part in seen for number, error in part.bad.items()}
    tasks = tuple(sorted({task for number, task in enumerate(found) if number not in bad}))
    place = {task: number for number, task in enumerate(tasks)}
    ids = [BAD if number in bad else place[task] for number, task in enumerate(found)]
    index = Index(sizes[:, :2].copy(), sizes[:, 2].copy(), tasks, np.array(ids, np.int32), bad)
    names = [task if number not in bad else "" for number, task in enumerate(found)]
    groups, group_ids = _grouped(list(_group_names(source, names)))
    return Survey(index, sizes[:, 3].copy(), groups, group_ids)


def single(source: Source, number: int) -> tuple[Source, int]:
    """The single source that holds a record, which can often be looked at quickly, and the record's number there."""
    while isinstance(source, ManySources):
        source, number = source.part(number)
    return source, number


def parts_of(source: Source) -> list[Source]:
    """The single sources that a source is made of."""
    if not isinstance(source, ManySources):
        return [source]
    return [single for part in source.parts for single in parts_of(part)]


def empty_parts(source: Source, bad: Collection[int]) -> Iterator[Source]:
    """The single sources of which every record is bad; `bad` holds numbers of records of the whole."""
    first = 0
    for part in parts_of(source):
        if all(number in bad for number in range(first, first + len(part))):
            yield part
        first += len(part)


def _group_names(source: Source, tasks: list[str]) -> Iterator[str]:
    """The name under which each record counts; a bad record's task is unknown where its source has several."""
    first = 0
    for part in parts_of(source):
        own = getattr(part, "task", "")
        for task in tasks[first : first + len(part)]:
            yield own or task or part.name
        first += len(part)


def _grouped(names: list[str]) -> tuple[tuple[str, ...], np.ndarray]:
    groups = {name: number for number, name in enumerate(dict.fromkeys(names))}
    return tuple(groups), np.array([groups[name] for name in names], np.int32)
