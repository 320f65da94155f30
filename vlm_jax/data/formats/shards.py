"""Conversations prepared once: shuffled ArrayRecord files that TFDS, and `TFDSSource`, read without TensorFlow.

Records are read in their order, serialized into one file aside, and copied from there into shards in a random order, so
that memory holds one record at a time, a source that likes to be read in order (Parquet) is, and what the shards hold
is a pure function of the records and the seed.
"""

from __future__ import annotations

import dataclasses
import io
import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vlm_jax.data.conversation import Conversation, RecordError
from vlm_jax.data.formats.schema import conversation_features, stable, to_record
from vlm_jax.data.formats.tfds import WEIGHTS_FILE
from vlm_jax.data.images import ImageError, decode_image, image_size
from vlm_jax.data.sources import Source, WeighedSource
from vlm_jax.errors import UserError
from vlm_jax.files import new_folder, write_json

SHARD_BYTES = 1 << 28
"""Size of a shard where no number of shards is given."""

Advance = Callable[[str, int], None]
"""`advance(split, n)`: n more records of a split are read."""


class Built(NamedTuple):
    """What was written of a split: number of records, their bytes, and files."""

    records: int
    bytes: int
    shards: int


def write_shards(
    splits: Mapping[str, Source],
    folder: Path,
    *,
    seed: int = 0,
    shards: int | None = None,
    overwrite: bool = False,
    bad: Callable[[str, RecordError], None] | None = None,
    advance: Advance | None = None,
) -> dict[str, Built]:
    """Writes a TFDS data set of conversations, all of it or nothing.

    Args:
      splits: sources by the splits' names. How often their records are used (`WeighedSource`) is kept.
      folder: the version folder, as `.../my_set/1.0.0`; the data set's name is that of the folder above it, or its own
        if it is not named after a version.
      seed: of the order.
      shards: files of a split; by default one for every `SHARD_BYTES`.
      overwrite: a data set that is there is replaced.
      bad: called with every record that cannot be read, which is left out; None raises the first.
      advance: called as records are read.

    Raises:
      UserError: the folder exists or cannot be written, a split has no record that can be read.
      RecordError: see `bad`.
    """
    import tensorflow_datasets as tfds

    if seed < 0:
        raise UserError(f"the seed must not be negative, got {seed}")
    if shards is not None and not 1 <= shards <= 99999:
        raise UserError(f"the number of shards must lie in 1..99999, got {shards}")
    name, version = data_set_name(folder)
    features = conversation_features()
    built, infos = {}, []
    with new_folder(folder, overwrite=overwrite) as aside:
        template = tfds.core.ShardedFileTemplate(data_dir=aside, dataset_name=name, filetype_suffix="array_record")
        for number, (split, source) in enumerate(splits.items()):
            with tempfile.TemporaryFile(dir=aside) as spool:
                ends = _serialize(source, split, features, spool, bad, advance)
                order = np.random.default_rng([seed, number]).permutation(len(ends) - 1)
                count = min(shards or -(-int(ends[-1]) // SHARD_BYTES), len(order))
                lengths = [len(part) for part in np.array_split(order, count)]
                paths = template.replace(split=split).sharded_filepaths(count)
                _copy(spool.fileno(), ends, order, lengths, [Path(path) for path in paths])
            built[split] = Built(len(order), int(ends[-1]), count)
            infos.append(tfds.core.SplitInfo(split, lengths, int(ends[-1]), template))
        weights = {s: dict(source.weights) for s, source in splits.items() if isinstance(source, WeighedSource)}
        if any(weights.values()):
            write_json(aside / WEIGHTS_FILE, weights)
        tfds.folder_dataset.write_metadata(
            data_dir=aside,
            features=features,
            split_infos=infos,
            version=version,
            filename_template=template,
            check_data=False,
            description="Conversations about pictures, prepared by vlm_jax.data.build.",
        )
    return built


def data_set_name(folder: Path) -> tuple[str, str]:
    """TFDS's name and version of the data set in a folder: `.../my_set/1.0.0`, or `.../my_set`, which is version 1.0.0.

    Raises:
      UserError: the name has other characters than TFDS allows.
    """
    folder = Path(os.path.abspath(folder))
    versioned = re.fullmatch(r"\d+\.\d+\.\d+", folder.name)
    name, version = (folder.parent.name, folder.name) if versioned else (folder.name, "1.0.0")
    if not re.fullmatch(r"[A-Za-z]\w*", name, re.ASCII):
        raise UserError(f"{folder}: '{name}' cannot be a data set's name; use letters, digits and _, a letter first")
    return name, version


def _serialize(
    source: Source,
    split: str,
    features: object,
    spool: io.BufferedRandom,
    bad: Callable[[str, RecordError], None] | None,
    advance: Advance | None,
) -> np.ndarray:
    """Writes every good record; returns where each begins, and at last where the file ends: int64 [records + 1]."""
    ends, size = [0], 0
    for number in range(len(source)):
        try:
            conversation = _checked(source[number])
        except RecordError as error:
            if bad is None:
                raise
            bad(split, error)
        else:
            record = features.encode_example(to_record(conversation))
            example = stable(features.serialize_example(record))
            spool.write(example)
            size += len(example)
            ends.append(size)
        if advance is not None:
            advance(split, 1)
    if len(ends) == 1:
        raise UserError(f"{source.name}: no record can be read, nothing is left for split '{split}'")
    spool.flush()
    return np.array(ends, np.int64)


def _checked(conversation: Conversation) -> Conversation:
    """With the size of every image known; a frame out of a decoder is stored without loss as PNG."""
    images = []
    for number, data in enumerate(conversation.images):
        try:
            image_size(data, f"image {number}")
            images.append(_as_png(data, f"image {number}") if data.startswith(b"P6") else data)
        except ImageError as error:
            raise RecordError(conversation.name, error.reason, str(error)) from None
    return dataclasses.replace(conversation, images=tuple(images))


def _as_png(data: bytes, name: str) -> bytes:
    stream = io.BytesIO()
    decode_image(data, name).save(stream, "PNG", compress_level=1)
    return stream.getvalue()


def _copy(spool: int, ends: np.ndarray, order: np.ndarray, lengths: Sequence[int], paths: Sequence[Path]) -> None:
    from array_record.python.array_record_module import ArrayRecordWriter

    first = 0
    for length, path in zip(lengths, paths, strict=True):
        writer = ArrayRecordWriter(str(path), "group_size:1")  # as TFDS writes: any record by itself
        try:
            for number in order[first : first + length].tolist():
                begin, end = ends[number : number + 2].tolist()
                writer.write(os.pread(spool, end - begin, begin))
        finally:
            writer.close()
        first += length
