"""`ocr`: conversations that ask for the text of pictures."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, get_args

from vlm_jax import cli
from vlm_jax.data.conversation import RecordError
from vlm_jax.data.formats.annotations import open_lines
from vlm_jax.data.images import decode_image
from vlm_jax.data.recipes.commands import flags as shared
from vlm_jax.data.recipes.ocr import Place, conversation
from vlm_jax.data.recipes.ocr_words import Word, words_from_json, words_from_tsv, words_to_json
from vlm_jax.data.recipes.pictures import Picture, pictures_in, pictures_of
from vlm_jax.data.recipes.tesseract import SHORT_SIDE, find_tesseract, read_words
from vlm_jax.data.recipes.written import Part, check_out, images_folder, write_parts
from vlm_jax.errors import UserError
from vlm_jax.files import write_atomically

HELP = """\
Makes of every picture with text a conversation of one turn: one of ten instructions to read it, and the text that an
OCR found, merged into paragraphs by geometry (LLaVAR's data for the first stage).

Words come from one of:
  --images=DIR              a folder of pictures, read by Tesseract (apt-get install tesseract-ocr)
  --data=PATH               the pictures of a data set, read likewise
  --images=DIR --tsv=DIR    Tesseract's tables, a/b.tsv for a/b.jpg
  --words=FILE              another OCR's words, in .jsonl or .json:
                            {"image": "a.jpg", "words": [{"text": "SALE", "box": [10, 12, 96, 40]}]}
                            with box in pixels, or four corners [x, y] clockwise from the text's upper left

examples:
  python -m vlm_jax.data.recipes ocr --images=posters --out=reading.json
  python -m vlm_jax.data.recipes ocr --words=paddle.jsonl --root=posters --out=reading.json
"""

_AT_ONCE = 64  # pictures in memory for each worker


class Found(NamedTuple):
    """What an OCR found in a picture."""

    id: str
    image: str
    words: list[Word]


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this recipe's flags."""
    from vlm_jax.data.inspection.flags import add_bad_flags, natural, positive

    shared.add_data(parser, required=False)
    parser.add_argument("--images", type=Path, metavar="DIR", help="a folder of pictures")
    parser.add_argument("--tsv", type=Path, metavar="DIR", help="a folder of Tesseract's tables, beside --images")
    parser.add_argument("--words", type=Path, metavar="FILE", help="words with their places, from any OCR")
    parser.add_argument("--language", default="eng", help="of Tesseract, as eng+deu (default: %(default)s)")
    parser.add_argument(
        "--psm",
        type=natural,
        default=3,
        metavar="N",
        help="how it looks for text; 11 is for sparse text (default: 3)",
    )
    parser.add_argument(
        "--short-side",
        type=natural,
        default=SHORT_SIDE,
        metavar="PX",
        help="pictures are shrunk to this for Tesseract, so that no text is asked for that nobody could see; 0 leaves "
        "them as they are (default: %(default)s)",
    )
    parser.add_argument(
        "--min-confidence", type=float, default=0.0, metavar="C", help="of a word; of Tesseract in percent (default: 0)"
    )
    parser.add_argument("--min-words", type=positive, default=1, metavar="N", help="of a picture (default: 1)")
    parser.add_argument(
        "--image-place",
        choices=get_args(Place),
        default="before",
        help="where the picture stands (default: before)",
    )
    parser.add_argument(
        "--save-words",
        type=Path,
        metavar="FILE.jsonl",
        help="also write the words that were found, as contexts for the recipe `write`",
    )
    parser.add_argument("--workers", type=positive, default=2, metavar="N", help="pictures read at once (default: 2)")
    shared.add_seed(parser, "which instruction a picture gets")
    add_bad_flags(parser)
    shared.add_out(parser)


def run(flags: Any) -> int:
    """Writes the conversations.

    Raises:
      UserError: input that cannot be read, too many bad records, or an output that cannot be written.
    """
    from vlm_jax.data.inspection.flags import folder_for
    from vlm_jax.data.quarantine import Quarantine, remove

    if sum(given is not None for given in (flags.data, flags.images, flags.words)) != 1:
        raise UserError("give one of --images, --data and --words (`--help` tells about them)")
    if flags.tsv and not flags.images:
        raise UserError("--tsv: needs --images, the folder of the pictures")
    check_out(flags.out, flags.overwrite)
    for path, flag in ((flags.quarantine, "--quarantine"), (flags.save_words, "--save-words")):
        if path is not None:
            folder_for(path, flag)
    total, sources = _sources(flags)
    remove(flags.quarantine)
    quarantine = Quarantine(flags.quarantine, total, flags.max_bad, source=str(flags.out), setting="--max-bad")
    bare, saved = 0, []

    def records(found: Iterable[Found]) -> Iterator[dict[str, Any]]:
        nonlocal bare
        for id_, image, words in found:
            if flags.save_words and words:
                saved.append(json.dumps({"id": id_, "image": image, "words": words_to_json(words)}, ensure_ascii=False))
            record = conversation(
                id_, image, words, seed=flags.seed, place=flags.image_place, min_words=flags.min_words
            )
            bare += record is None
            if record is not None:
                yield record

    with cli.progress("Reading", total) as advance:
        parts = [
            Part(name, records(found(lambda error: quarantine.add([error]), advance)), root)
            for name, root, found in sources
        ]
        counts = write_parts(parts, flags.out, overwrite=flags.overwrite)
    if flags.save_words:
        write_atomically(flags.save_words, "".join(f"{line}\n" for line in saved))
    sys.stdout.write(f"{sum(counts.values()):,} pictures with text, {bare:,} without\n{quarantine.summary()}\n")
    sys.stdout.write(f"{flags.out}: written\n")
    return cli.OK


Reader = Callable[[Callable[[RecordError], None], Callable[[], None]], Iterator[Found]]
"""Gives what was found picture by picture; is told whom to tell of bad records, and of every one that is done."""


def _sources(flags: Any) -> tuple[int, list[tuple[str, Path, Reader]]]:
    """Number of pictures or records, and for each source its name, the pictures' folder, and what reads it."""
    if flags.words:
        lines = open_lines(flags.words)
        root = Path(flags.root) if flags.root else flags.words.parent
        return len(lines), [(flags.words.stem, root, lambda bad, advance: _given(lines, flags, bad, advance))]
    read = _from_table(flags) if flags.tsv else _by_tesseract(flags)
    if flags.images:
        pictures = pictures_in(flags.images)

        def listed(bad: Callable, advance: Callable) -> Iterator[Found]:
            return _read_all(pictures, read, flags.workers, bad, advance)

        return len(pictures), [(flags.images.resolve().name, flags.images, listed)]
    sources = shared.open_sources(flags)
    stored = images_folder(flags.out)

    def reader(source: Any) -> Reader:
        def shown(bad: Callable, advance: Callable) -> Iterator[Found]:
            return _read_all(pictures_of(source, stored, bad, advance), read, flags.workers, bad, lambda: None)

        return shown

    return sum(len(opened.source) for opened in sources.values()), [
        (name, getattr(opened.source, "root", stored), reader(opened.source)) for name, opened in sources.items()
    ]


def _given(lines: Any, flags: Any, bad: Callable, advance: Callable) -> Iterator[Found]:
    """The words of a file's records."""
    for number in range(len(lines)):
        place = f"{flags.words}:{number + 1}"
        try:
            fields = json.loads(lines[number].decode("utf-8-sig"))
            if not isinstance(fields, dict) or not isinstance(fields.get("image"), str):
                raise RecordError(place, "type", "image: must be the name of a picture")
            words = words_from_json(fields.get("words"), place, flags.min_confidence)
            yield Found(str(fields.get("id", fields["image"])), fields["image"], words)
        except ValueError as error:
            bad(RecordError(place, "json", f"not valid JSON: {error}"))
        except RecordError as error:
            bad(error)
        advance()


def _by_tesseract(flags: Any) -> Callable[[Picture], list[Word]]:
    program = find_tesseract()
    options = ("-l", flags.language, "--psm", str(flags.psm))

    def read(picture: Picture) -> list[Word]:
        image = _decoded(picture)
        return read_words(
            image,
            picture.place,
            program=program,
            options=options,
            short_side=flags.short_side,
            min_confidence=flags.min_confidence,
        )

    return read


def _decoded(picture: Picture) -> Any:
    data = picture.read()
    try:
        return decode_image(data, picture.place)
    except RecordError:
        raise
    except UserError as error:
        reason = getattr(error, "reason", "image")
        raise RecordError(picture.place, reason, str(error).removeprefix(f"{picture.place}: ")) from None


def _from_table(flags: Any) -> Callable[[Picture], list[Word]]:
    def read(picture: Picture) -> list[Word]:
        path = (flags.tsv / picture.name).with_suffix(".tsv")
        try:
            table = path.read_text("utf-8", "replace")
        except OSError as error:
            raise RecordError(picture.place, "missing", f"{path} cannot be read: {error.strerror}") from None
        return words_from_tsv(table, str(path), flags.min_confidence)

    return read


def _read_all(
    pictures: Iterable[Picture],
    read: Callable[[Picture], list[Word]],
    workers: int,
    bad: Callable[[RecordError], None],
    advance: Callable[[], None],
) -> Iterator[Found]:
    """Reads pictures side by side and gives the results in their order."""

    def one(picture: Picture) -> Found | RecordError:
        try:
            return Found(picture.name, picture.name, read(picture))
        except RecordError as error:
            return error

    remaining = iter(pictures)
    with ThreadPoolExecutor(workers) as pool:
        while some := list(islice(remaining, _AT_ONCE * workers)):
            for result in pool.map(one, some):
                advance()
                if isinstance(result, RecordError):
                    bad(result)
                else:
                    yield result
