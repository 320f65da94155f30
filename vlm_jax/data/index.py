"""The index of a source: size and task of every record, measured once and kept beside the data.

Packing is planned from it, so that rows are known before any pixel is decoded.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from vlm_jax.data.conversation import RecordError
from vlm_jax.data.prepare import Preparer, Size
from vlm_jax.data.sources import ManySources, PeekableSource, Source, StoredSource
from vlm_jax.errors import UserError

_FORMAT = 2  # to be raised when the meaning of the file changes
_LINE_EVERY = 20_000  # records between two progress lines where there is no terminal


@dataclasses.dataclass(frozen=True)
class Index:
    """Sizes and tasks of a source's records.

    Attributes:
      sizes: int32 [n, 2]; tokens and tiles.
      least: int32 [n]; tokens that must stay when a record is cut (`Size.least`).
      tasks: names of the tasks that occur, sorted.
      task_ids: int32 [n]; index into `tasks`.
    """

    sizes: np.ndarray
    least: np.ndarray
    tasks: tuple[str, ...]
    task_ids: np.ndarray


def load_index(source: Source, preparer: Preparer) -> Index:
    """Reads the source's index, or measures the source and writes it.

    The file is named by a digest of everything that sizes depend on, so a stale one is never read. Sources that are not
    in files are measured every time. A source of several has an index of each.

    Raises:
      UserError: the source is empty, or a record cannot be measured. How long one may be is for the batches to say.
    """
    if not len(source):
        raise UserError(f"{source.name}: the data set is empty")
    if isinstance(source, ManySources):
        return _joined([load_index(part, preparer) for part in source.parts])
    if not isinstance(source, StoredSource):
        return _measure(source, preparer)
    path = source.folder / f"index-{_digest(source, preparer)}.npz"
    if not path.exists():
        index = _measure(source, preparer)
        _write(path, index)
        return index
    with np.load(path, allow_pickle=False) as file:
        return Index(file["sizes"], file["least"], tuple(file["tasks"].tolist()), file["task_ids"])


def _joined(parts: Sequence[Index]) -> Index:
    tasks = tuple(sorted({task for part in parts for task in part.tasks}))
    ids = [np.array([tasks.index(task) for task in part.tasks], np.int32)[part.task_ids] for part in parts]
    return Index(
        np.concatenate([part.sizes for part in parts]),
        np.concatenate([part.least for part in parts]),
        tasks,
        np.concatenate(ids),
    )


def _measure(source: Source, preparer: Preparer) -> Index:
    from rich.console import Console
    from rich.progress import track

    terminal = sys.stderr.isatty()
    sizes = np.zeros((len(source), 3), np.int32)
    tasks: dict[str, int] = {}
    task_ids = np.zeros(len(source), np.int32)
    numbers = track(
        range(len(source)),
        description=f"measuring {source.name}",
        console=Console(stderr=True),
        transient=True,
        disable=not terminal,
    )
    for number in numbers:
        sizes[number], task = _measured(source, number, preparer)
        task_ids[number] = tasks.setdefault(task, len(tasks))
        if not terminal and number and number % _LINE_EVERY == 0:
            logging.getLogger(__name__).info("measured %d of %d records of %s", number, len(source), source.name)
    names = sorted(tasks)
    rank = np.array([names.index(task) for task in tasks], np.int32)
    return Index(sizes[:, :2].copy(), sizes[:, 2].copy(), tuple(names), rank[task_ids])


def _measured(source: Source, number: int, preparer: Preparer) -> tuple[Size, str]:
    """A record's size and task, from the beginnings of its images' files where they are enough."""
    if isinstance(source, PeekableSource):
        try:
            conversation = source.peek(number)
            return preparer.measure(conversation), conversation.task
        except RecordError:  # a picture whose header is long; or a bad record, which the whole one says again
            pass
    conversation = source[number]
    return preparer.measure(conversation), conversation.task


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


def _write(path: Path, index: Index) -> None:
    """Writes the file whole or not at all; a folder that cannot be written to costs only the measuring next time."""
    temporary = None
    try:
        with tempfile.NamedTemporaryFile(dir=path.parent, suffix=".tmp", delete=False) as file:
            temporary = file.name
            np.savez(file, sizes=index.sizes, least=index.least, tasks=np.array(index.tasks), task_ids=index.task_ids)
        os.replace(temporary, path)
    except OSError as error:
        logging.getLogger(__name__).warning("%s: the index of record sizes was not kept: %s", path, error.strerror)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
