"""The index of a source: size and task of every record, measured once and kept beside the data.

Packing is planned from it, so that rows are known before any pixel is decoded. Records that cannot be used stand in it
with what is wrong with them.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from vlm_jax.data.conversation import RecordError
from vlm_jax.data.plan.measure import WORTH_PROCESSES, Measured, measure, measure_record
from vlm_jax.data.prepare import Preparer
from vlm_jax.data.sources import ManySources, Source, StoredSource
from vlm_jax.errors import UserError
from vlm_jax.files import share

_FORMAT = 5  # to be raised when the meaning of the file changes

BAD = -1
"""Value of `Index.task_ids` for a record that cannot be used."""


@dataclasses.dataclass(frozen=True)
class Index:
    """Sizes and tasks of a source's records.

    Attributes:
      sizes: int32 [n, 2]; tokens and tiles; 0 and 0 of a record that cannot be used.
      least: int32 [n]; tokens that must stay when a record is cut (`Size.least`).
      tasks: names of the tasks that occur, sorted.
      task_ids: int32 [n]; index into `tasks`, or `BAD`.
      bad: by its number, what is wrong with every record that cannot be used.
    """

    sizes: np.ndarray
    least: np.ndarray
    tasks: tuple[str, ...]
    task_ids: np.ndarray
    bad: Mapping[int, RecordError] = dataclasses.field(default_factory=dict)


def load_index(source: Source, preparer: Preparer, workers: int | None = None, again: bool = False) -> Index:
    """Reads the source's index, or measures the source and writes it.

    The file is named by a digest of everything that sizes depend on, so a stale one is never read. Sources that are not
    in files are measured every time. A source of several has an index of each.

    Args:
      source: the conversations.
      preparer: knows sizes. How long a record may be is for the batches to say.
      workers: processes that measure a source in files; None takes one for every core where there are enough records.
      again: measures those records once more that could not be used, because what was missing may be there now.

    Raises:
      UserError: the source is empty.
    """
    if not len(source):
        raise UserError(f"{source.name}: the data set is empty")
    if isinstance(source, ManySources):
        return _joined([load_index(part, preparer, workers, again) for part in source.parts])
    if not isinstance(source, StoredSource):
        return _measured(source, preparer, 0)
    path = source.folder / f"index-{_digest(source, preparer)}.npz"
    index = _read(path, source)
    if index is None:
        index = _measured(source, preparer, workers)
        _write(path, index)
    elif again and index.bad:
        index = _mended(index, source, preparer)
        _write(path, index)
    return index


def _joined(parts: Sequence[Index]) -> Index:
    tasks = tuple(sorted({task for part in parts for task in part.tasks}))
    ids = [np.array([*map(tasks.index, part.tasks), BAD], np.int32)[part.task_ids] for part in parts]  # BAD is the last
    firsts = np.cumsum([0, *(len(part.sizes) for part in parts)]).tolist()
    return Index(
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.least for part in parts]),
        tasks,
        np.concatenate(ids),
        {
            first + number: error
            for first, part in zip(firsts, parts, strict=False)
            for number, error in part.bad.items()
        },
    )


def _mended(index: Index, source: Source, preparer: Preparer) -> Index:
    """The index with its bad records measured once more."""
    sizes = np.column_stack([index.sizes, index.least])
    tasks = np.array([*index.tasks, ""], object)[index.task_ids]  # BAD is the last
    bad = {}
    for number in index.bad:
        try:
            conversation, sizes[number] = measure_record(source, number, preparer)
            tasks[number] = conversation.task
        except RecordError as error:
            bad[number] = error
    return index_of(Measured(sizes, tasks.tolist(), bad))


def index_of(found: Measured) -> Index:
    """The index of what was measured."""
    good = np.ones(len(found.tasks), bool)
    good[list(found.bad)] = False
    tasks = tuple(sorted({task for task, used in zip(found.tasks, good.tolist(), strict=True) if used}))
    place = {task: number for number, task in enumerate(tasks)}
    ids = np.where(good, np.array([place.get(task, BAD) for task in found.tasks], np.int32), BAD)
    return Index(found.sizes[:, :2].copy(), found.sizes[:, 2].copy(), tasks, ids.astype(np.int32), found.bad)


def _measured(source: Source, preparer: Preparer, workers: int | None) -> Index:
    """Measures a source, and shows how far it is if it takes long enough for somebody to wonder."""
    from vlm_jax.cli import progress

    if len(source) < WORTH_PROCESSES:
        return index_of(measure(source, preparer, workers=workers))
    with progress(f"Measuring {source.name}", len(source)) as advance:
        return index_of(measure(source, preparer, workers=workers, advance=advance))


def _digest(source: StoredSource, preparer: Preparer) -> str:
    parts = {
        "format": _FORMAT,
        "source": source.fingerprint(),
        "tokenizer": preparer.tokenizer.to_json(),
        "template": dataclasses.asdict(preparer.template),
        "layout": [type(preparer.layout).__name__, dataclasses.asdict(preparer.layout)],
        "tokens_per_tile": preparer.tokens_per_tile,
        "share_tiles": preparer.share_tiles,
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _read(path: Path, source: Source) -> Index | None:
    """The index in a file, if there is one; a damaged one is measured again.

    Its bad records are called what the source calls them now: it may have been opened by another path.
    """
    here = getattr(source, "place", None)
    try:
        with np.load(path, allow_pickle=False) as file:
            bad = {
                int(number): RecordError(here(int(number)) if here else place, reason, detail, *task)
                for number, (place, reason, detail, *task) in json.loads(str(file["bad"])).items()
            }
            return Index(file["sizes"], file["least"], tuple(file["tasks"].tolist()), file["task_ids"], bad)
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
        logging.getLogger(__name__).warning("%s: not a readable index, measuring again: %s", path, error)
        return None


def _write(path: Path, index: Index) -> None:
    """Writes the file whole or not at all; a folder that cannot be written to costs only the measuring next time."""
    temporary = None
    bad = {number: (error.place, error.reason, error.detail, error.task) for number, error in index.bad.items()}
    arrays = {
        "sizes": index.sizes,
        "least": index.least,
        "tasks": np.array(index.tasks, np.str_),
        "task_ids": index.task_ids,
        "bad": np.array(json.dumps(bad)),
    }
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            temporary = file.name
            np.savez(file, **arrays)
        share(Path(temporary))
        os.replace(temporary, path)
    except OSError as error:
        logging.getLogger(__name__).warning("%s: the index of record sizes was not kept: %s", path, error.strerror)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
