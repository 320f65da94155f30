"""The survey: every record of a source looked at afresh, in parallel, for `vlm_jax.data.check` and `.show`.

It finds what the index finds (`data.plan.index`), and the number of images. But the index is kept from run to run,
and its file does not know when a picture has vanished or come back; a survey always looks.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator

import numpy as np

from vlm_jax.data.plan.index import Index, index_of
from vlm_jax.data.plan.measure import measure
from vlm_jax.data.prepare import Preparer
from vlm_jax.data.sources import Source, parts_of


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
    found = measure(source, preparer, deep=deep, workers=workers, advance=advance)
    groups, group_ids = _grouped(list(_group_names(source, found.tasks)))
    return Survey(index_of(found), found.sizes[:, 3].copy(), groups, group_ids)


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
