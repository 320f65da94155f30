"""InternVL's meta files: which annotation files a mixture is made of, and how each is used.

    {"captions": {"root": "images/", "annotation": "captions.jsonl", "data_augment": false, "repeat_time": 1,
                  "length": 1000, "max_dynamic_patch": 12}, ...}

Source: `shell/data/*.json` of OpenGVLab/InternVL, and `build_datasets` in `internvl/train/internvl_chat_finetune.py`.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm_jax.config import build, config_class
from vlm_jax.data.formats.annotations import AnnotationSource, open_lines
from vlm_jax.data.formats.frames import FrameRange
from vlm_jax.data.layouts.closest_aspect import MOST_TILES
from vlm_jax.data.sources import ManySources
from vlm_jax.errors import UserError


@config_class
class MetaEntry:
    """One source of a meta file. Relative paths count from the meta file's folder.

    Attributes:
      root: folder that the annotation's image files are named from.
      annotation: its file: `.jsonl`, one record a line, or (which the reference refuses) `.json`, a list of records.
      data_augment: training tiles are encoded as JPEG anew (`vlm_jax.data.augment`).
      repeat_time: below 1 the first int(lines * repeat_time) lines are used; above 1, a whole number, every epoch holds
        each record so many times.
      length: the file has at least so many lines.
      max_dynamic_patch: tiles of an image at most, instead of the layout's `max_tiles`.
      min_num_frame, max_num_frame: frames that a video is shown as (in the reference an argument of the trainer).
    """

    root: str
    annotation: str
    data_augment: bool = False
    repeat_time: float = 1.0
    length: int | None = None
    max_dynamic_patch: int | None = None
    min_num_frame: int = 8
    max_num_frame: int = 32


def read_meta(path: str | Path) -> dict[str, MetaEntry]:
    """Reads a meta file, name by name.

    Raises:
      UserError: naming the file, and the source and field in it.
    """
    path = Path(path)
    try:
        sources = json.loads(path.read_text("utf-8-sig"), object_pairs_hook=_without_repetition)
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(sources, dict) or not sources:
        raise UserError(f'{path}: must be a JSON object {{"name": {{"root": ..., "annotation": ...}}, ...}}')
    entries = {}
    for name, fields in sources.items():
        if not isinstance(fields, dict):
            raise UserError(f"{path}: {name}: must be an object with root and annotation")
        entries[name] = build(MetaEntry, fields, f"{path}: {name}")
        if problem := _problem(entries[name]):
            raise UserError(f"{path}: {name}.{problem}")
    return entries


def _problem(entry: MetaEntry) -> str:
    """What no type says; '' where all is well."""
    for field in ("root", "annotation"):
        if "://" in getattr(entry, field):
            return f"{field}: {getattr(entry, field)} is an address; copy the files into a folder first"
    if not entry.annotation.endswith((".jsonl", ".json")):
        return f"annotation: must be a .jsonl or .json file, got '{entry.annotation}'"
    times = entry.repeat_time
    if not (math.isfinite(times) and times > 0 and (times < 1 or times.is_integer())):
        return f"repeat_time: must be a fraction below 1 or a whole number, got {times:g}"
    for field, least in (("length", 0), ("max_dynamic_patch", 1)):
        value = getattr(entry, field)
        if value is not None and value < least:
            return f"{field}: must be at least {least}, got {value}"
    if (entry.max_dynamic_patch or 0) > MOST_TILES:
        return f"max_dynamic_patch: must be at most {MOST_TILES}, got {entry.max_dynamic_patch}"
    if not 1 <= entry.min_num_frame <= entry.max_num_frame:
        return f"min_num_frame: must lie in 1..max_num_frame ({entry.max_num_frame}), got {entry.min_num_frame}"
    return ""


def open_meta(path: str | Path, index_folder: Path | None = None) -> ManySources:
    """Opens the sources of a meta file: finds their lines, and reads no record yet.

    Args:
      path: of the meta file.
      index_folder: where indices are kept of annotation files in folders that cannot be written to.

    Raises:
      UserError: as `read_meta`; an annotation file that is missing, empty or shorter than the meta file says.
    """
    path = Path(path)
    entries = read_meta(path)
    parts = [_open(path, name, entry, index_folder) for name, entry in entries.items()]
    weights = {name: max(1.0, entry.repeat_time) for name, entry in entries.items()}
    return ManySources(tuple(parts), str(path), weights)


def _open(path: Path, name: str, entry: MetaEntry, index_folder: Path | None) -> AnnotationSource:
    try:
        lines = open_lines(path.parent / entry.annotation)
    except UserError as error:
        raise UserError(f"{path}: {name}.annotation: {error}") from None
    if len(lines) < (entry.length or 0):
        raise UserError(f"{path}: {name}.length: is {entry.length}, but {lines.path} has {len(lines)} line(s)")
    count = int(len(lines) * min(1.0, entry.repeat_time))
    if not count:
        kept = f" times repeat_time {entry.repeat_time:g}" if len(lines) else ""
        raise UserError(
            f"{path}: {name}.annotation: {lines.path} has {len(lines)} line(s){kept}: nothing to learn from"
        )
    return AnnotationSource(
        task=name,
        lines=lines,
        count=count,
        root=path.parent / entry.root,
        max_tiles=entry.max_dynamic_patch,
        augment=entry.data_augment,
        frames=FrameRange(entry.min_num_frame, entry.max_num_frame),
        index_folder=index_folder,
    )


def _without_repetition(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    names = [name for name, _ in pairs]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise ValueError(f"'{twice[0]}' stands there twice")
    return dict(pairs)
