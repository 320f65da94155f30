"""Writing what a recipe made or chose, as data that `data.check` accepts and a run reads.

The name of the output says its form. `NAME.json` is a meta file with one annotation file beside it for each source, and
pictures stay where they are. `NAME.jsonl` is one file of records, whose pictures are named from its own folder and so
must lie in it. Pictures that a data set holds inside are stored in the folder `NAME-images`, named by their content.
"""

from __future__ import annotations

import dataclasses
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image

from vlm_jax.data.conversation import Conversation
from vlm_jax.data.formats.annotations import AnnotationSource
from vlm_jax.data.formats.meta_writer import NewFile, annotation_path, new_files, one_line, options_of, root_from
from vlm_jax.data.formats.schema import SPEAKERS
from vlm_jax.data.recipes.items import file_names, separate, with_file_names
from vlm_jax.data.sources import Source
from vlm_jax.errors import UserError
from vlm_jax.files import share


@dataclasses.dataclass(frozen=True)
class Part:
    """Records of one source, to be written.

    Attributes:
      name: of the source.
      records: JSON objects, each as the bytes of one line or as its fields; read once.
      root: folder that their files are named from.
      repeat: how often an epoch holds each of them, a whole number.
      options: more fields of its `MetaEntry`.
    """

    name: str
    records: Iterable[bytes | Mapping[str, Any]]
    root: Path
    repeat: int = 1
    options: Mapping[str, Any] = dataclasses.field(default_factory=dict)


def check_out(out: Path, overwrite: bool = False) -> None:
    """Refuses an output that cannot be written, before any work is done.

    Raises:
      UserError: a name of another form, a folder that is not there, or something at `out` already.
    """
    if out.suffix not in (".json", ".jsonl"):
        raise UserError(f"--out: {out}: must be the name of a .json file (meta file) or of a .jsonl file (records)")
    if not out.absolute().parent.is_dir():
        raise UserError(f"--out: {out}: its folder does not exist")
    if os.path.lexists(out) and not overwrite:
        raise UserError(f"--out: {out}: already exists; choose another name, remove it, or say --overwrite")


def write_parts(parts: Sequence[Part], out: Path, *, overwrite: bool = False) -> dict[str, int]:
    """Writes records of several sources, all of them or nothing.

    Args:
      parts: at least one of which has a record; one without any is left out.
      out: see above.
      overwrite: files that are there already are replaced.

    Returns:
      Records written, by the name of their source.

    Raises:
      UserError: there is no record; a picture lies outside of the folder of a `.jsonl`; files cannot be written.
    """
    with new_files(out, "--out", overwrite=overwrite) as new_file:
        write = _write_meta if out.suffix == ".json" else _write_records
        counts = write(parts, out, new_file)
        if not any(counts.values()):
            raise UserError(f"--out: {out}: no record is left to write")
    return counts


def chosen(name: str, source: Source, numbers: Iterable[int], out: Path, repeat: int = 1) -> Part:
    """Records of a single source by their numbers, in this order.

    Args:
      name: of the source in the output.
      source: an annotation file's lines are copied byte by byte; other records are written anew.
      numbers: of the records, from 0.
      out: of the recipe; pictures that the source holds inside are stored beside it.
      repeat: see `Part`.
    """
    if isinstance(source, AnnotationSource):
        lines = (one_line(source.lines[number]) for number in numbers)
        return Part(name, lines, source.root, repeat, options_of(source))
    folder = images_folder(out)
    records = (record for number in numbers for record in _written_anew(source[number], folder))
    return Part(name, records, folder, repeat)


def images_folder(out: Path) -> Path:
    """Where pictures are stored that lie in no files of their own."""
    return out.with_name(f"{out.stem}-images")


def store_image(image: bytes, folder: Path) -> str:
    """Stores an image file under a name that its content gives it, once; returns the name.

    Raises:
      UserError: it cannot be written.
    """
    with Image.open(io.BytesIO(image)) as opened:
        suffix = (opened.format or "bin").lower()
    name = f"{hashlib.sha256(image).hexdigest()[:24]}.{suffix}"
    path = folder / name
    try:
        if not path.exists():
            folder.mkdir(exist_ok=True)
            aside = folder / f".{name}.{os.getpid()}"
            aside.write_bytes(image)
            share(aside)
            aside.replace(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written: {error.strerror}") from None
    return name


def _written_anew(conversation: Conversation, folder: Path) -> Iterator[dict[str, Any]]:
    """A conversation as records of an annotation file."""
    names = [store_image(image, folder) for image in conversation.images]
    for single in separate(conversation):
        turns = [{"from": SPEAKERS[turn.role], "value": turn.text} for turn in single.turns]
        images = {"image": names[0] if len(names) == 1 else names} if names else {}
        yield {"id": single.id, **images, "conversations": turns}


def _write_meta(parts: Sequence[Part], out: Path, new_file: NewFile) -> dict[str, int]:
    entries: dict[str, Any] = {}
    for part in parts:
        path = annotation_path(part.name, out, [entry["annotation"] for entry in entries.values()])
        with new_file(path) as file:
            count = _write(part.records, file, lambda record: record)
        if count:
            root = root_from(path.absolute().parent, part.root)
            files = {"root": root, "annotation": path.name, "repeat_time": part.repeat, "length": count}
            entries[part.name] = {**files, **part.options}
    with new_file(out) as file:
        file.write((json.dumps(entries, indent=2, ensure_ascii=False) + "\n").encode("utf-8", "surrogateescape"))
    return {name: entry["length"] for name, entry in entries.items()}


def _write_records(parts: Sequence[Part], out: Path, new_file: NewFile) -> dict[str, int]:
    counts = {}
    with new_file(out) as file:
        for part in parts:
            rename = _renamer(part, out)
            counts[part.name] = _write(part.records, file, rename, part.repeat)
    return counts


def _write(
    records: Iterable[bytes | Mapping[str, Any]],
    file: BinaryIO,
    rename: Callable[[bytes | Mapping[str, Any]], bytes | Mapping[str, Any]],
    times: int = 1,
) -> int:
    count = 0
    for record in records:
        new = rename(record)
        line = new if isinstance(new, bytes) else json.dumps(new, ensure_ascii=False).encode()
        file.write((line + b"\n") * times)
        count += times
    return count


def _renamer(part: Part, out: Path) -> Callable[[bytes | Mapping[str, Any]], bytes | Mapping[str, Any]]:
    """What names the files of a record from the folder of `out`; a record that needs no change stays byte for byte."""
    folder, root = os.path.realpath(out.absolute().parent), os.path.realpath(part.root)

    def rename(record: bytes | Mapping[str, Any]) -> bytes | Mapping[str, Any]:
        if root == folder:
            return record
        try:
            fields = json.loads(record.decode("utf-8-sig")) if isinstance(record, bytes) else record
        except ValueError:
            return record  # it stays a bad record; `data.check` tells it
        if not isinstance(fields, Mapping) or not (names := file_names(fields)):
            return record
        new = {name: os.path.relpath(os.path.join(root, name), folder) for name in names}
        if outside := [name for name in names if new[name].split(os.sep)[0] == os.pardir]:
            raise UserError(
                f"--out: {out}: {outside[0]} of {part.name} lies outside of its folder; name it {out.stem}.json, and "
                f"a meta file will lead to {part.root}"
            )
        return with_file_names(fields, new)

    return rename
