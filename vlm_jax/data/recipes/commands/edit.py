"""`edit`: a mixture after a list of edits."""

from __future__ import annotations

import argparse
import dataclasses
import functools
import sys
from pathlib import Path
from typing import Any

from vlm_jax import cli
from vlm_jax.data.recipes.commands import flags as shared
from vlm_jax.data.recipes.commands.mix import write_mixture
from vlm_jax.data.recipes.edit import apply, read_edits
from vlm_jax.data.recipes.items import content_key, read_item
from vlm_jax.data.recipes.mix import histogram
from vlm_jax.data.recipes.written import check_out
from vlm_jax.errors import UserError

HELP = """\
Changes a mixture by a file of edits, in TOML or JSON: sources are dropped, replaced by others, added, or capped, one
edit after another.

  [sources]                              # what may be taken in; paths count from this file's folder
  docvqa = "docvqa/train.jsonl"
  syndog = "syndog/meta.json"            # a meta file's sources are called syndog-NAME; all of them are taken

  [[operations]]
  type = "replace"                       # or "drop", without by
  source = "textcaps"
  by = ["docvqa", "syndog"]

  [[operations]]
  type = "add"
  sources = ["chartqa"]

  [[operations]]
  type = "cap"
  records = 50000                        # of every source, or of the one that `source` names

With same_as = "NAME", a drop or replace concerns only the records that NAME has too: the same turns about pictures of
the same names, wherever the mark of a picture stands. So SVIT's core set takes the place of LLaVA-Instruct-150K within
LLaVA-1.5's one file.

example:
  python -m vlm_jax.data.recipes edit --data=llava15.json --edits=next.toml --out=llava_next.json
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this recipe's flags."""
    shared.add_data(parser)
    parser.add_argument("--edits", required=True, type=Path, metavar="FILE", help="the list of edits (.toml, .json)")
    shared.add_seed(parser, "what caps draw")
    shared.add_out(parser)


def run(flags: Any) -> int:
    """Writes the mixture after the edits.

    Raises:
      UserError: data or edits that cannot be read, or an output that cannot be written.
    """
    check_out(flags.out, flags.overwrite)
    edits = read_edits(flags.edits)
    base = shared.open_sources(flags)
    offered: dict[str, shared.Opened] = {}
    groups: dict[str, list[str]] = {}
    for name, path in edits.sources.items():
        for full, opened in shared.open_named(f"{name}={flags.edits.parent / path}"):
            if full in base or full in offered:
                raise UserError(f"{flags.edits}: sources.{name}: '{full}' is the name of another source already")
            offered[full] = opened
            groups.setdefault(name, []).append(full)
    sources = {**base, **offered}

    @functools.cache
    def keys(name: str) -> list[str]:
        source = sources[name].source
        with cli.progress(f"Comparing {name}", len(source)) as advance:
            found = []
            for number in range(len(source)):
                found.append(content_key(read_item(source, number)))
                advance()
        return found

    sizes = {name: len(opened.source) for name, opened in sources.items()}
    mixed = apply(
        {name: sizes[name] for name in base},
        {name: sizes[name] for name in offered},
        [_spread(operation, groups) for operation in edits.operations],
        seed=flags.seed,
        keys=keys,
    )
    write_mixture(sources, mixed, flags)
    sys.stdout.write(histogram(sizes, {name: len(numbers) for name, numbers in mixed.items()}) + "\n")
    sys.stdout.write(f"{flags.out}: written\n")
    return cli.OK


def _spread(operation: Any, groups: dict[str, list[str]]) -> Any:
    """An operation in which the name of a meta file stands for all of its sources."""
    for field in ("by", "sources"):
        names = getattr(operation, field, None)
        if names is not None:
            full = [single for name in names for single in groups.get(name, [name])]
            return dataclasses.replace(operation, **{field: full})
    return operation
