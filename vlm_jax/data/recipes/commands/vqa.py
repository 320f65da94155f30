"""`vqa`: questions about pictures, or captions of them, as conversations in LLaVA-1.5's form."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from vlm_jax import cli
from vlm_jax.data.recipes.commands import flags as shared
from vlm_jax.data.recipes.vqa import Record, caption_records, coco_captions, merged, vqa_questions
from vlm_jax.data.recipes.written import Part, check_out, write_parts
from vlm_jax.errors import UserError
from vlm_jax.files import read_json

HELP = """\
Makes conversations of VQAv2's questions and annotations: the questions about one picture are merged into one
conversation, so that it is encoded once, and the first of them asks for a short answer, as in LLaVA-1.5's mixture. Or
makes records of COCO's captions, one for each, for a stage that aligns (with the prompt format `plain`).

examples:
  python -m vlm_jax.data.recipes vqa --questions=v2_OpenEnded_mscoco_train2014_questions.json \\
      --annotations=v2_mscoco_train2014_annotations.json --images=train2014 --out=vqa.json
  python -m vlm_jax.data.recipes vqa --captions=captions_train2017.json --images=train2017 --out=captions.json
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this recipe's flags."""
    from vlm_jax.data.inspection.flags import natural

    parser.add_argument("--questions", type=Path, metavar="FILE", help="VQAv2's questions")
    parser.add_argument("--annotations", type=Path, metavar="FILE", help="VQAv2's answers to them")
    parser.add_argument("--captions", type=Path, metavar="FILE", help="COCO's captions, in place of both")
    parser.add_argument("--images", type=Path, required=True, metavar="DIR", help="folder of the pictures")
    parser.add_argument(
        "--image-name",
        default="COCO_train2014_{:012d}.jpg",
        metavar="NAME",
        help="name of a picture, with a place for its number (default: %(default)s)",
    )
    parser.add_argument(
        "--max-turns", type=natural, default=0, metavar="N", help="questions of a conversation at most (default: all)"
    )
    parser.add_argument("--shuffle", action="store_true", help="mix the order of the questions about a picture")
    parser.add_argument(
        "--always", action="store_true", help="every question asks for a short answer, not the first only"
    )
    shared.add_seed(parser, "the order with --shuffle")
    shared.add_out(parser)


def run(flags: Any) -> int:
    """Writes the records.

    Raises:
      UserError: files that cannot be read or are of another kind, or an output that cannot be written.
    """
    asked = (flags.questions, flags.annotations)
    if bool(flags.captions) == any(asked) or any(asked) != all(asked):
        raise UserError("give --questions and --annotations, or --captions")
    check_out(flags.out, flags.overwrite)
    if not flags.images.is_dir():
        raise UserError(f"--images: {flags.images}: there is no such folder")
    records = _captions(flags) if flags.captions else _questions(flags)
    write_parts([Part(flags.out.stem, records, flags.images)], flags.out, overwrite=flags.overwrite)
    turns = sum(len(record["conversations"]) for record in records) // 2
    sys.stdout.write(f"{len(records):,} conversations, {turns:,} questions\n{flags.out}: written\n")
    return cli.OK


def _captions(flags: Any) -> list[Record]:
    return caption_records(coco_captions(read_json(flags.captions)))


def _questions(flags: Any) -> list[Record]:
    try:
        names = {flags.image_name.format(number) for number in (1, 2)}
    except (ValueError, LookupError, AttributeError, TypeError) as error:
        raise UserError(f"--image-name: {flags.image_name}: {error}") from None
    if len(names) < 2:  # all questions would be about one picture
        raise UserError(f"--image-name: {flags.image_name}: no place for a picture's number, such as {{:012d}}")
    questions = vqa_questions(read_json(flags.questions), read_json(flags.annotations), flags.image_name)
    seed = flags.seed if flags.shuffle else None
    return merged(questions, seed=seed, max_turns=flags.max_turns, always=flags.always)
