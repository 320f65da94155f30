"""Writing files and folders whole, telling a full disk from other trouble, and distrusting links."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from vlm_jax.errors import UserError


@contextlib.contextmanager
def new_folder(folder: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A new folder beside `folder` that takes its place at the end, or vanishes if something fails.

    Raises:
      UserError: there is something at `folder` already and `overwrite` does not allow it; it cannot be written.
    """
    folder = Path(os.path.abspath(folder))  # so that `.` has a name
    if not overwrite and folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: already exists; choose another place or remove it")
    aside, old = (folder.with_name(f".{folder.name}.{kind}") for kind in ("partial", "old"))
    try:
        for left in (aside, old):  # of a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        aside.mkdir(parents=True)
        yield aside
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        shutil.rmtree(old, ignore_errors=True)
    except UserError:
        raise
    except Exception as error:
        if not isinstance(error, OSError) and not is_full_disk(error):
            raise
        raise UserError(f"{folder}: cannot write it: {'the disk is full' if is_full_disk(error) else error}") from None
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def share(path: Path) -> None:
    """Lets those read and write a file who may do so with its folder; temporary files are their writer's alone."""
    with contextlib.suppress(OSError):  # a file system that knows no such rights
        path.chmod(path.parent.stat().st_mode & 0o666)


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
      UserError: the file is missing, unreadable, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror}") from None
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: not JSON: {error}") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold a JSON object")
    return content


def read_table(path: Path) -> dict[str, Any]:
    """The content of a TOML file, or of any other name the JSON object in it.

    Raises:
      UserError: the file is missing, unreadable, or holds something else.
    """
    if path.suffix != ".toml":
        return read_json(path)
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{path}: cannot read it: {error.strerror}") from None
    except ValueError as error:
        raise UserError(f"{path}: not TOML: {error}") from None


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON object for people to read."""
    path.write_text(json.dumps(content, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def refuse_links_out(folder: Path) -> None:
    """Of a folder that somebody else made: a link in it could lead to any file of this machine.

    Links of a hub's cache are followed: its `snapshots/<revision>/` links to `blobs/` beside `snapshots/`.

    Raises:
      UserError: naming the first link that leads elsewhere.
    """
    root = folder.resolve()
    allowed = [root, *([root.parent.parent / "blobs"] if root.parent.name == "snapshots" else [])]
    for entry in sorted(folder.iterdir()):
        target = Path(os.path.realpath(entry))  # where `Path.resolve` raises, of links in a circle, it gives a link
        if entry.is_symlink() and not any(target.is_relative_to(place) for place in allowed):
            raise UserError(f"{entry}: links to a file outside the folder, {target}")


def write_atomically(path: Path, text: str) -> None:
    """Writes a UTF-8 file so that a reader, or a crash, finds the old file or the new one and nothing between.

    Raises:
      OSError: the system cannot write it; the old file stays.
    """
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(partial, "wb") as file:
            # A tokenizer's bytes need not be valid text; whatever cannot be encoded is shown as an escape.
            file.write(text.encode("utf-8", errors="backslashreplace"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(partial, path)
    except OSError:
        partial.unlink(missing_ok=True)
        raise


def is_full_disk(error: BaseException | None) -> bool:
    """Whether a full disk (or quota) is behind `error`; TensorStore reports it as text only."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if "No space left on device" in str(error) or "RESOURCE_EXHAUSTED: Disk" in str(error):
            return True
        error = error.__cause__ or error.__context__
    return False
