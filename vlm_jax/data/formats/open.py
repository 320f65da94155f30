"""One way in: whatever a data set is stored as, its path is enough to open it."""

from __future__ import annotations

import json
import re
from pathlib import Path

from vlm_jax.data.formats.annotations import AnnotationSource, is_json_lines, open_lines
from vlm_jax.data.formats.meta import open_meta
from vlm_jax.data.formats.parquet import open_parquet, parquet_files
from vlm_jax.data.formats.records import LAYOUTS
from vlm_jax.data.formats.tfds import TFDSSource, tfds_splits
from vlm_jax.data.sources import Source
from vlm_jax.errors import UserError

_META_AT_MOST = 1 << 24  # bytes; a meta file is a page of names

KINDS = (
    "a meta file (.json with root and annotation by name), records (.jsonl, one a line; .json, one list), Parquet "
    "(.parquet, or a folder of such files), or the folder of a prepared TFDS data set (with dataset_info.json)"
)
"""What `open_data` opens, for messages and help texts."""


def open_data(
    path: str | Path, *, split: str = "train", root: str | Path | None = None, index_folder: Path | None = None
) -> Source:
    """Opens a data set of any kind; no record is read yet.

    Args:
      path: a meta file, a file of records (`records.py`), a Parquet file or a folder of them, or the folder
        of a prepared TFDS data set.
      split: of data sets that have several.
      root: folder that the pictures of a file of records are named from; by default the file's own.
      index_folder: where indices are kept of files in folders that cannot be written to.

    Returns:
      The source; a meta file's has a part for each of its entries.

    Raises:
      UserError: nothing is there, or nothing that is known; or what is there has a mistake.
    """
    path = Path(path)
    if re.match(r"\w+:/", str(path)):
        raise UserError(f"{path} is an address; copy the data into a folder first")
    is_records = path.suffix == ".jsonl" or (path.suffix == ".json" and path.is_file() and not _is_meta(path))
    if root is not None and path.exists() and not is_records:
        raise UserError(f"{path}: a folder of pictures can be given for a file of records alone, got {root}")
    if path.is_dir():
        return _open_folder(path, split, index_folder)
    if not path.exists():
        raise UserError(f"{path}: cannot be read: No such file or directory")
    if is_records:
        return _open_records(path, path.parent if root is None else Path(root), index_folder)
    if path.suffix == ".json":
        return open_meta(path, index_folder)
    if path.suffix == ".parquet":
        return open_parquet(path, split, index_folder=index_folder)
    raise UserError(f"{path}: not a data set; expected {KINDS}")


def _open_folder(path: Path, split: str, index_folder: Path | None) -> Source:
    if (path / "dataset_info.json").exists():
        known = tfds_splits(path)
        if split not in known:
            raise UserError(f"{path}: no split '{split}', there are {', '.join(known)}")
        return TFDSSource(path, split)
    if parquet_files(path):
        return open_parquet(path, split, index_folder=index_folder)
    raise UserError(f"{path}: not a data set; expected {KINDS}")


def _open_records(path: Path, root: Path, index_folder: Path | None) -> AnnotationSource:
    lines = open_lines(path)
    if not len(lines):
        raise UserError(f"{path}: the data set is empty")
    return AnnotationSource(task=path.stem, lines=lines, count=len(lines), root=root, index_folder=index_folder)


def _is_meta(path: Path) -> bool:
    """Whether a JSON file is one object, of no record: also a damaged meta file is one, so that its mistake is told."""
    try:
        with path.open("rb") as file:
            head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
        if not head.startswith(b"{"):
            return not head.startswith(b"[")
        if path.stat().st_size > _META_AT_MOST:
            return False
        content = json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError):
        return not is_json_lines(path)
    return not any(isinstance(content.get(field), list | str) for field in LAYOUTS)
