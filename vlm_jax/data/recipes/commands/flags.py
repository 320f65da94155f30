"""Flags that recipes share: the data sets that they read, and where they write."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from vlm_jax.data.formats.annotations import AnnotationSource
from vlm_jax.data.formats.open import KINDS, open_data
from vlm_jax.data.sources import ManySources, Source, parts_of
from vlm_jax.errors import UserError

_NAMED = re.compile(r"([\w.-]+)=(.+)", re.DOTALL)


class Opened(NamedTuple):
    """A single source.

    Attributes:
      source: its records.
      repeat: how often an epoch holds each of them, where a meta file says so.
    """

    source: Source
    repeat: int = 1


def add_data(parser: argparse.ArgumentParser, *, required: bool = True) -> None:
    """Adds the flags that `open_sources` reads."""
    parser.add_argument(
        "--data",
        action="append",
        required=required,
        metavar="[NAME=]PATH",
        help=f"data, may be given several times: {KINDS}. A meta file's sources keep their names; others are called "
        "NAME, or as the file",
    )
    parser.add_argument("--split", default="train", help="of data that has several (default: %(default)s)")
    parser.add_argument("--root", metavar="DIR", help="of files of records: the pictures' folder (default: the file's)")


def add_out(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say where to write."""
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="FILE",
        help="NAME.json: a meta file, with a file of records beside it for every source; pictures may lie anywhere. "
        "NAME.jsonl: one file of records; pictures must lie in its folder",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def add_seed(parser: argparse.ArgumentParser, of: str) -> None:
    """Adds `--seed`."""
    from vlm_jax.data.inspection.flags import natural

    parser.add_argument("--seed", type=natural, default=0, metavar="N", help=f"of {of} (default: 0)")


def open_sources(flags: Any) -> dict[str, Opened]:
    """All single sources of the data that the flags name.

    Raises:
      UserError: data that cannot be opened, or two sources of one name.
    """
    found: dict[str, Opened] = {}
    for given in flags.data:
        for name, opened in open_named(given, split=flags.split, root=flags.root):
            if name in found:
                raise UserError(f"--data: {given}: there is a source '{name}' already; give it a name, NAME=PATH")
            found[name] = opened
    return found


def open_named(given: str, *, split: str = "train", root: str | None = None) -> Iterator[tuple[str, Opened]]:
    """The single sources of `[NAME=]PATH`, with their names.

    Yields:
      Name and source; of a meta file opened under a NAME, the sources are called NAME-SOURCE.

    Raises:
      UserError: it cannot be opened.
    """
    own, path = "", given
    if (match := _NAMED.fullmatch(given)) and not Path(given).exists():
        own, path = match[1], match[2]
    source = open_data(path, split=split, root=root)
    weights = source.weights if isinstance(source, ManySources) else {}
    for part in parts_of(source):
        task = part.task if isinstance(part, AnnotationSource) else Path(path).stem
        several = isinstance(source, ManySources)
        name = (f"{own}-{task}" if several else own) if own else task
        yield name, Opened(part, int(weights.get(task, 1.0)))


def pairs(values: Sequence[str], flag: str) -> dict[str, int]:
    """`NAME=NUMBER` of a flag that may be given several times, or separated by commas.

    Raises:
      UserError: something else, or a name twice.
    """
    found: dict[str, int] = {}
    for value in (part for given in values for part in given.split(",")):
        name, _, number = value.rpartition("=")
        if not name or not number.isdecimal() or name in found:
            raise UserError(f"{flag}: must be NAME=NUMBER, each name once, got '{value}'")
        found[name] = int(number)
    return found
