"""The flags that `vlm_jax.data`'s commands share: which data, for which model it is prepared, what of bad records.

Without a model folder the sizes are those of Mini-InternVL. Without a tokenizer either, one is trained on the data's
own text, as a run from scratch does; there is none to fall back on without a download, and characters are no measure of
tokens in most languages.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
from pathlib import Path
from typing import Any, NamedTuple

from vlm_jax.data.formats.open import KINDS, open_data
from vlm_jax.data.layouts.closest_aspect import ClosestAspect
from vlm_jax.data.prepare import Preparer
from vlm_jax.data.quarantine import LIMIT
from vlm_jax.data.sources import Source
from vlm_jax.data.text.corpus import training_text
from vlm_jax.data.text.templates import TEMPLATES
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.errors import UserError

PATCH = 14
"""Side of InternViT's patches in pixels; four of them become one visual token."""

LARGEST_TILE = 8192
"""Side of a tile at most: no encoder is larger, and the tokens of one could not even be counted."""

CONTEXT = 32_768
"""Longest conversation where no model says it: that of Mini-InternVL 1B and 2B."""

VOCABULARY, TRAINING_RECORDS = 8192, 20_000
"""Of a tokenizer that is trained on the data: its ids, and the records (evenly spaced) it learns from, at most."""


class Prepared(NamedTuple):
    """Data and what makes examples of it.

    Attributes:
      source: the records.
      preparer: for the model that the flags name.
      lengths: in words, what tokens are counted with.
    """

    source: Source
    preparer: Preparer
    lengths: str


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that `prepare` reads."""
    data = parser.add_argument_group("data and model")
    data.add_argument("--data", required=True, metavar="PATH", help=f"the data: {KINDS}")
    data.add_argument("--split", default="train", help="of data that has several (default: %(default)s)")
    data.add_argument("--root", metavar="DIR", help="of a file of records: the pictures' folder (default: the file's)")
    data.add_argument("--model", metavar="DIR", help="workdir or model folder: its tokenizer, template and tiles count")
    data.add_argument("--tokenizer", metavar="DIR", help="folder of a tokenizer, in place of --model")
    data.add_argument(
        "--template", choices=sorted(TEMPLATES), help="prompt format (default: the model's, otherwise internvl2)"
    )
    data.add_argument(
        "--max-tiles", type=positive, metavar="N", help="tiles of a picture (default: the model's, or 12)"
    )
    data.add_argument(
        "--tile-size", type=positive, metavar="PX", help="side of a tile (default: 448); not beside --model"
    )
    data.add_argument("--tokens", type=positive, metavar="N", help="tokens of a row (default: chosen from the data)")
    data.add_argument("--tiles", type=positive, metavar="N", help="tile slots of a row (default: chosen from the data)")


def add_bad_flags(parser: argparse.ArgumentParser) -> None:
    """Adds the flags about bad records."""
    parser.add_argument(
        "--quarantine",
        type=Path,
        default=Path("quarantine.jsonl"),
        metavar="FILE",
        help="where bad records are listed (default: %(default)s in the current folder)",
    )
    parser.add_argument(
        "--max-bad",
        type=share,
        default=LIMIT,
        metavar="SHARE",
        help="share of all records that may be bad (default: %(default)s)",
    )


def prepare(flags: Any) -> Prepared:
    """Opens the data and what the flags prepare it for.

    Raises:
      UserError: flags that contradict each other, data or a model that cannot be opened.
    """
    if flags.model and (flags.tokenizer or flags.tile_size):
        wrong = "--tokenizer" if flags.tokenizer else "--tile-size"
        raise UserError(f"{wrong} cannot stand beside --model, which brings its own")
    source = open_data(flags.data, split=flags.split, root=flags.root)
    if not len(source):
        raise UserError(f"{source.name}: the data set is empty")
    if flags.model:
        return _for_model(flags, source)
    template = TEMPLATES[flags.template or "internvl2"]
    if flags.tokenizer:
        tokenizer = Tokenizer.load(flags.tokenizer).with_image_tokens(template)
        lengths = f"the tokenizer in {flags.tokenizer}"
    else:
        tokenizer = Tokenizer.train(training_text(source, template, TRAINING_RECORDS), VOCABULARY, template)
        lengths = (
            f"a tokenizer of {tokenizer.vocab_size:,} words trained on this very data, for want of --model or "
            "--tokenizer; another one will count somewhat differently"
        )
    size = flags.tile_size or 448
    if not 2 * PATCH <= size <= LARGEST_TILE:
        raise UserError(f"--tile-size: must lie in {2 * PATCH}..{LARGEST_TILE}, got {size}")
    layout = ClosestAspect(tile_size=size, max_tiles=flags.max_tiles or 12)
    # Four patches become one token, by halves of the grid's sides (`tokens_per_tile` of the connector).
    tokens_per_tile = (size // PATCH // 2) ** 2
    return Prepared(source, Preparer(tokenizer, template, layout, PATCH, tokens_per_tile, CONTEXT), lengths)


def _for_model(flags: Any, source: Source) -> Prepared:
    from vlm_jax.convert.workdirs import open_system

    system, tokenizer = open_system(flags.model)
    preparer = system.preparer(tokenizer, system.model.decoder.max_tokens, flags.max_tiles, training=True)
    if flags.template:
        preparer = dataclasses.replace(preparer, template=TEMPLATES[flags.template])
    return Prepared(source, preparer, f"the tokenizer of {flags.model}")


def positive(text: str) -> int:
    """A flag's whole number from 1."""
    return _whole(text, 1)


def natural(text: str) -> int:
    """A flag's whole number from 0."""
    return _whole(text, 0)


def _whole(text: str, least: int) -> int:
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise argparse.ArgumentTypeError(f"must be a whole number from {least}, got '{text}'")
    return value


def share(text: str) -> float:
    """A flag's value from 0 to 1."""
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must be a share from 0 to 1, got '{text}'")
    return value


def folder_for(path: Path, flag: str) -> None:
    """Refuses a file that could not be written, before any work is done.

    Raises:
      UserError: its folder does not exist or may not be written to.
    """
    folder = Path(os.path.abspath(path)).parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UserError(f"{flag}: {path}: its folder does not exist or cannot be written to")
