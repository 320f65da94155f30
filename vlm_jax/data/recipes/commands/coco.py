"""`coco`: COCO's annotation files as contexts for `write`."""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

from vlm_jax import cli
from vlm_jax.data.recipes.coco import contexts_of_coco
from vlm_jax.data.recipes.contexts import to_json
from vlm_jax.errors import UserError
from vlm_jax.files import read_json, write_atomically

HELP = """\
Makes contexts for the recipe `write` of COCO's annotation files: for every picture its captions, and its objects with
their boxes. The pictures themselves are not needed.

example:
  python -m vlm_jax.data.recipes coco --captions=captions_val2017.json --instances=instances_val2017.json \\
      --out=contexts.jsonl
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this recipe's flags."""
    parser.add_argument("--captions", type=Path, metavar="FILE", help="COCO's captions")
    parser.add_argument("--instances", type=Path, metavar="FILE", help="COCO's objects")
    parser.add_argument("--crowds", action="store_true", help="boxes around crowds of things count too")
    parser.add_argument("--out", required=True, type=Path, metavar="FILE.jsonl", help="contexts, one a line")
    parser.add_argument("--overwrite", action="store_true", help="replace what is there")


def run(flags: Any) -> int:
    """Writes the contexts.

    Raises:
      UserError: files that cannot be read or are no COCO files, or an output that cannot be written.
    """
    if not (flags.captions or flags.instances):
        raise UserError("give --captions, --instances, or both")
    if os.path.lexists(flags.out) and not flags.overwrite:
        raise UserError(f"--out: {flags.out}: already exists; choose another name, remove it, or say --overwrite")
    with cli.progress("Reading", 2) as advance:
        contents = []
        for path in (flags.captions, flags.instances):
            contents.append(read_json(path) if path else None)
            advance()
    contexts = contexts_of_coco(*contents, crowds=flags.crowds)
    if not contexts:
        raise UserError("no picture has an annotation")
    try:
        write_atomically(
            flags.out, "".join(json.dumps(to_json(context), ensure_ascii=False) + "\n" for context in contexts)
        )
    except OSError as error:
        raise UserError(f"--out: {flags.out}: cannot be written: {error.strerror}") from None
    captions, boxes = (sum(len(getattr(context, field)) for context in contexts) for field in ("captions", "boxes"))
    sys.stdout.write(f"{len(contexts):,} pictures, {captions:,} captions, {boxes:,} boxes\n{flags.out}: written\n")
    return cli.OK
