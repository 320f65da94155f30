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
from pathlib import Path

import numpy as np

from vlm_jax.data.prepare import Preparer
from vlm_jax.data.sources import Source, StoredSource
from vlm_jax.errors import UserError

_FORMAT = 1  # to be raised when the meaning of the file changes
_LINE_EVERY = 20_000  # records between two progress lines where there is no terminal


@dataclasses.dataclass(frozen=True)
class Index:
    """Sizes and tasks of a source's records.

    Attributes:
      sizes: int32 [n, 2]; tokens and tiles.
      tasks: names of the tasks that occur, sorted.
      task_ids: int32 [n]; index into `tasks`.
    """

    sizes: np.ndarray
    tasks: tuple[str, ...]
    task_ids: np.ndarray


def load_index(source: Source, preparer: Preparer) -> Index:
    """Reads the source's index, or measures the source and writes it.

    The file is named by a digest of everything that sizes depend on, so a stale one is never read. Sources that are not
    in files are measured every time.

    Raises:
      UserError: the source is empty, or a record cannot be measured. How long one may be is for the batches to say.
    """
    if not len(source):
        raise UserError(f"{source.name}: the data set is empty")
    if not isinstance(source, StoredSource):
        return _measure(source, preparer)
    path = source.folder / f"index-{_digest(source, preparer)}.npz"
    if not path.exists():
        index = _measure(source, preparer)
        _write(path, index)
        return index
    with np.load(path, allow_pickle=False) as file:
        return Index(sizes=file["sizes"], tasks=tuple(file["tasks"].tolist()), task_ids=file["task_ids"])


def _measure(source: Source, preparer: Preparer) -> Index:
    from rich.console import Console
    from rich.progress import track

    terminal = sys.stderr.isatty()
    sizes = np.zeros((len(source), 2), np.int32)
    tasks: list[str] = []
    numbers = track(
        range(len(source)),
        description=f"measuring {source.name}",
        console=Console(stderr=True),
        transient=True,
        disable=not terminal,
    )
    for number in numbers:
        conversation = source[number]
        sizes[number] = preparer.measure(conversation)
        tasks.append(conversation.task)
        if not terminal and number and number % _LINE_EVERY == 0:
            logging.getLogger(__name__).info("measured %d of %d records of %s", number, len(source), source.name)
    names, task_ids = np.unique(np.array(tasks), return_inverse=True)
    return Index(sizes=sizes, tasks=tuple(names.tolist()), task_ids=task_ids.astype(np.int32))


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
            np.savez(file, sizes=index.sizes, tasks=np.array(index.tasks), task_ids=index.task_ids)
        os.replace(temporary, path)
    except OSError as error:
        logging.getLogger(__name__).warning("%s: the index of record sizes was not kept: %s", path, error.strerror)
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
