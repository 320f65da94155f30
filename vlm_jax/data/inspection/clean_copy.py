"""A copy of a data set without its bad records: a meta file, with annotation files of the good lines beside it.

Images stay where they are. A line is copied byte by byte; an element of a JSON list becomes a line, with spaces where
it had line breaks (inside of JSON's texts there are none).
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from vlm_jax.data.formats.annotations import AnnotationSource
from vlm_jax.data.formats.frames import FRAMES
from vlm_jax.data.formats.meta import read_meta
from vlm_jax.data.sources import ManySources, Source, parts_of
from vlm_jax.errors import UserError

_JOIN = 1 << 20  # bytes written at a time


def check_target(target: Path, data: str) -> None:
    """Refuses to write over anything.

    Raises:
      UserError: there is something at `target` already, or its folder does not exist.
    """
    if target.suffix != ".json":
        raise UserError(f"--fix: {target}: must be the name of a .json file")
    if os.path.lexists(target):
        same = " (it is the data itself)" if target.exists() and os.path.realpath(data) == str(target.resolve()) else ""
        raise UserError(f"--fix: {target}: already exists{same}; choose another name or remove it")
    if not target.absolute().parent.is_dir():
        raise UserError(f"--fix: {target}: its folder does not exist")


def check_source(source: Source) -> None:
    """Refuses what cannot be copied line by line.

    Raises:
      UserError: a part of the source is no annotation file.
    """
    others = [part.name for part in parts_of(source) if not isinstance(part, AnnotationSource)]
    if others:
        raise UserError(
            f"--fix: {others[0]}: only annotation files (.jsonl, .json) can be copied without their bad records; "
            "a run leaves the bad records out by itself"
        )


def write(source: Source, bad: Collection[int], target: Path, data: str) -> Iterator[str]:
    """Writes the copy, all of it or nothing; the meta file appears last.

    Of a source that is used in part (`repeat_time` below 1) the copy holds the good records of that part, and all of
    them count: a fraction of fewer lines would be others.

    Args:
      source: all of whose parts are annotation files.
      bad: numbers of the records to leave out.
      target: path of the new meta file.
      data: path that the source was opened from.

    Yields:
      What was done, line by line.

    Raises:
      UserError: the source is stored in another way, no record is good, a file exists already or cannot be written.
    """
    check_source(source)
    weights = source.weights if isinstance(source, ManySources) else {}
    roots = {name: entry.root for name, entry in read_meta(data).items()} if isinstance(source, ManySources) else {}
    entries: dict[str, Any] = {}
    said: list[str] = []
    with _new_files(target) as new_file:
        first = 0
        for part in parts_of(source):
            kept = [number for number in range(len(part)) if first + number not in bad]
            first += len(part)
            if not kept:
                said.append(f"{part.name}: left out, it has no good record")
                continue
            path = _path_for(part.task, target, entries)
            with new_file(path) as file:
                _copy(part, kept, file)
            root = _root_from(path.parent, part.root, absolute=os.path.isabs(roots.get(part.task, "")))
            entries[part.task] = _entry(part, root, path, len(kept), weights.get(part.task, 1.0))
            said.append(f"{path}: {len(kept):,} of {len(part):,} records of {part.name}{_of_part(part)}")
        if not entries:
            raise UserError(f"--fix: {source.name}: no record is good, there is nothing to copy")
        with new_file(target) as file:
            file.write((json.dumps(entries, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape"))
    yield from said
    yield f"{target}: the clean copy of {source.name}"


def _of_part(part: AnnotationSource) -> str:
    unused = len(part.lines) - len(part)
    return f" (the {unused:,} lines that repeat_time leaves unused are not copied)" if unused else ""


def _path_for(task: str, target: Path, entries: dict[str, Any]) -> Path:
    """A name of its own beside the meta file."""
    name = re.sub(r"[^\w.-]+", "_", task).strip("._")[:80] or "records"
    taken = {entry["annotation"].lower() for entry in entries.values()}
    number, found = 1, f"{target.stem}-{name}.jsonl"
    while found.lower() in taken:
        number += 1
        found = f"{target.stem}-{name}-{number}.jsonl"
    return target.with_name(found)


def _entry(part: AnnotationSource, root: str, path: Path, count: int, weight: float) -> dict[str, Any]:
    entry: dict[str, Any] = {
        "root": root,
        "annotation": path.name,
        "data_augment": part.augment,
        "repeat_time": int(weight),
        "length": count,
    }
    if part.frames != FRAMES:
        entry |= {"min_num_frame": part.frames.least, "max_num_frame": part.frames.most}
    return entry | ({} if part.max_tiles is None else {"max_dynamic_patch": part.max_tiles})


def _root_from(folder: Path, root: Path, absolute: bool) -> str:
    """The images' folder as seen from the new meta file, or its full path if it was given as one."""
    real = os.path.realpath(root)
    return real if absolute else os.path.relpath(real, os.path.realpath(folder))


def _copy(part: AnnotationSource, kept: list[int], file: Any) -> None:
    for number in kept:
        file.write(_one_line(part.lines[number]) + b"\n")


def _one_line(record: bytes) -> bytes:
    return record.replace(b"\r", b" ").replace(b"\n", b" ") if b"\n" in record else record


@contextlib.contextmanager
def _new_files(target: Path) -> Iterator[Any]:
    """Files that are written aside and take their names together at the end, or vanish."""
    made: list[tuple[Path, Path]] = []

    @contextlib.contextmanager
    def new_file(path: Path) -> Iterator[Any]:
        if os.path.lexists(path):
            raise UserError(f"--fix: {path}: already exists; choose another name than {target.name} or remove it")
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        made.append((aside, path))
        with aside.open("xb", buffering=_JOIN) as file:
            yield file

    try:
        yield new_file
        for aside, path in made:
            aside.rename(path)
    except OSError as error:
        raise UserError(f"--fix: {target}: cannot be written: {error.strerror}") from None
    finally:
        for aside, _ in made:
            aside.unlink(missing_ok=True)
