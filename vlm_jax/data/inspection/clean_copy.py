"""A copy of a data set without its bad records: a meta file, with annotation files of the good lines beside it.

Images stay where they are. A line is copied byte by byte; an element of a JSON list becomes a line, with spaces where
it had line breaks (inside of JSON's texts there are none).
"""

from __future__ import annotations

import json
import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from vlm_jax.data.formats.annotations import AnnotationSource
from vlm_jax.data.formats.meta import read_meta
from vlm_jax.data.formats.meta_writer import annotation_path, new_files, one_line, options_of, root_from
from vlm_jax.data.sources import ManySources, Source, parts_of
from vlm_jax.errors import UserError


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
    with new_files(target, "--fix") as new_file:
        first = 0
        for part in parts_of(source):
            kept = [number for number in range(len(part)) if first + number not in bad]
            first += len(part)
            if not kept:
                said.append(f"{part.name}: left out, it has no good record")
                continue
            path = annotation_path(part.task, target, [entry["annotation"] for entry in entries.values()])
            with new_file(path) as file:
                file.writelines(one_line(part.lines[number]) + b"\n" for number in kept)
            entries[part.task] = {
                "root": root_from(path.parent, part.root, absolute=os.path.isabs(roots.get(part.task, ""))),
                "annotation": path.name,
                "repeat_time": int(weights.get(part.task, 1.0)),
                "length": len(kept),
                **options_of(part),
            }
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
