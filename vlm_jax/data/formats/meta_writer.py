"""Writing a meta file with the annotation files of its sources beside it, all of them or nothing.

Images stay where they are: a source's `root` leads to them from the new meta file.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from vlm_jax.data.formats.annotations import AnnotationSource
from vlm_jax.data.formats.frames import FRAMES
from vlm_jax.errors import UserError

NewFile = Callable[[Path], contextlib.AbstractContextManager[BinaryIO]]
"""Opens a file to write, under a name that it takes at the end."""

_JOIN = 1 << 20  # bytes written at a time


def annotation_path(task: str, meta: Path, taken: Collection[str]) -> Path:
    """A name of its own for a source's annotation file, beside the meta file.

    Args:
      task: the source.
      meta: path of the meta file.
      taken: names of files that other sources have.
    """
    name = re.sub(r"[^\w.-]+", "_", task).strip("._")[:80] or "records"
    others = {other.lower() for other in taken}
    number, found = 1, f"{meta.stem}-{name}.jsonl"
    while found.lower() in others:
        number += 1
        found = f"{meta.stem}-{name}-{number}.jsonl"
    return meta.with_name(found)


def options_of(part: AnnotationSource) -> dict[str, Any]:
    """What a meta file says of a source besides its files, in fields of `MetaEntry`."""
    frames = part.frames
    return {
        "data_augment": part.augment,
        **({} if frames == FRAMES else {"min_num_frame": frames.least, "max_num_frame": frames.most}),
        **({} if part.max_tiles is None else {"max_dynamic_patch": part.max_tiles}),
    }


def root_from(folder: Path, root: Path, *, absolute: bool = False) -> str:
    """The images' folder as seen from the new meta file's, or its full path."""
    real = os.path.realpath(root)
    return real if absolute else os.path.relpath(real, os.path.realpath(folder))


def one_line(record: bytes) -> bytes:
    """JSON without line breaks, which stand between its parts only; inside of its texts there are none."""
    return record.replace(b"\r", b" ").replace(b"\n", b" ") if b"\n" in record else record


@contextlib.contextmanager
def new_files(target: Path, flag: str, *, overwrite: bool = False) -> Iterator[NewFile]:
    """Files that are written aside and take their names together at the end, or vanish.

    Args:
      target: the file that was asked for, for messages.
      flag: that asked for it, likewise.
      overwrite: files that are there already are replaced.

    Raises:
      UserError: a file is there already, or cannot be written.
    """
    made: list[tuple[Path, Path]] = []

    @contextlib.contextmanager
    def new_file(path: Path) -> Iterator[BinaryIO]:
        if not overwrite and os.path.lexists(path):
            raise UserError(f"{flag}: {path}: already exists; choose another name than {target.name} or remove it")
        aside = path.with_name(f".{path.name}.{os.getpid()}")
        made.append((aside, path))
        with aside.open("wb", buffering=_JOIN) as file:
            yield file

    try:
        yield new_file
        for aside, path in made:
            aside.replace(path)
    except OSError as error:
        raise UserError(f"{flag}: {target}: cannot be written: {error.strerror}") from None
    finally:
        for aside, _ in made:
            aside.unlink(missing_ok=True)
