"""Prepared TFDS data sets in ArrayRecord files, read without TensorFlow."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.formats.records import bad, read_turns
from vlm_jax.errors import UserError

WEIGHTS_FILE = "weights.json"
"""Beside a data set's description: how often an epoch holds every record of a task, by split and task."""


@dataclasses.dataclass(frozen=True)
class TFDSSource:
    """A prepared TFDS data set in ArrayRecord files, read without TensorFlow and without decoding images.

    Features: `id`, `task` and `conversations` are text, the last a JSON list of `{"from": "system|human|gpt", "value":
    text}` (InternVL's format); `images` is a sequence of encoded images (`tfds.features.Image`, or bytes); a data set
    may have the others of `schema.py`. Where a `weights.json` lies beside its `dataset_info.json`, it says
    how often records are used: `{"split": {"task": weight}}`.

    Attributes:
      folder: the version folder with `dataset_info.json`.
      split: a split, or a slice of one in TFDS's notation (`train[:1000]`).
    """

    folder: Path
    split: str

    def __init__(self, folder: str | Path, split: str) -> None:
        """Opens nothing yet; a wrong folder or split is a `UserError` at the first use."""
        object.__setattr__(self, "folder", Path(folder))
        object.__setattr__(self, "split", split)

    def __reduce__(self) -> tuple[Any, ...]:
        return TFDSSource, (self.folder, self.split)  # without the open files

    @property
    def name(self) -> str:
        """Folder and split."""
        return f"{self.folder} ({self.split})"

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> Conversation:
        """Record `index`, from 0.

        Raises:
          RecordError: its turns are not what an annotation file may say either.
        """
        record = self._records[index]
        name, images = record["id"].decode(errors="backslashreplace"), tuple(bytes(image) for image in record["images"])
        place = record.get("place", b"").decode()
        return Conversation(
            turns=turns_from_json(record["conversations"], place or f"record {name}", len(images)),
            images=images,
            id=name,
            task=record["task"].decode(),
            independent=bool(record.get("independent", False)),
            place=place,
            max_tiles=int(record.get("max_tiles", 0)) or None,
            augment=bool(record.get("augment", False)),
        )

    @functools.cached_property
    def weights(self) -> Mapping[str, float]:
        """See `WeighedSource`; none where the data set does not say."""
        path = self.folder / WEIGHTS_FILE
        try:
            weights = json.loads(path.read_text("utf-8")).get(self.split.partition("[")[0], {})
            return {str(task): float(weight) for task, weight in weights.items()}
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise UserError(f"{path}: cannot be read: {error.strerror}") from None
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise UserError(f'{path}: must be {{"split": {{"task": weight}}}} ({error})') from None

    def fingerprint(self) -> str:
        """Digest of the split, the data set's description and the names, sizes and times of its files."""
        digest = hashlib.sha256(self.split.encode())
        try:
            for path in sorted(self.folder.glob("*.array_record*")):
                digest.update(f"{path.name} {path.stat().st_size} {path.stat().st_mtime_ns}\n".encode())
            digest.update((self.folder / "dataset_info.json").read_bytes())
        except OSError as error:
            raise UserError(f"{self.folder}: not a prepared TFDS data set: {error}") from None
        return digest.hexdigest()

    @functools.cached_property
    def _records(self) -> Any:
        import tensorflow_datasets as tfds

        class Encoded(tfds.decode.SkipDecoding):
            """`SkipDecoding` for a sequence in a data source, which TFDS 4.9 does not know."""

            def decode_batch_example_np(self, example: Any) -> Any:
                return example

        if not (self.folder / "dataset_info.json").exists():
            raise UserError(f"{self.folder}: not a prepared TFDS data set: it has no dataset_info.json")
        builder = tfds.builder_from_directory(str(self.folder))
        missing = {"id", "task", "conversations", "images"} - set(builder.info.features)
        if missing:
            raise UserError(f"{self.folder}: the data set lacks the feature(s) {', '.join(sorted(missing))}")
        if self.split.partition("[")[0] not in builder.info.splits:
            known = ", ".join(sorted(builder.info.splits))
            raise UserError(f"{self.folder}: no split '{self.split}', there are {known}")
        try:
            return builder.as_data_source(self.split, decoders={"images": Encoded()})
        except (ValueError, NotImplementedError) as error:
            raise UserError(f"{self.name}: cannot read the data set: {error}") from None


def tfds_splits(folder: Path) -> tuple[str, ...]:
    """Names of the splits of a prepared TFDS data set.

    Raises:
      UserError: it is none.
    """
    try:
        info = json.loads((folder / "dataset_info.json").read_text("utf-8"))
        return tuple(str(split["name"]) for split in info["splits"])
    except OSError as error:
        raise UserError(f"{folder}: not a prepared TFDS data set: {error}") from None
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{folder}/dataset_info.json: damaged: {type(error).__name__}: {error}") from None


def find_tfds(name: str, data_dir: Path) -> Path:
    """The version folder of a prepared TFDS data set, by name.

    Args:
      name: `my_set`, `my_set/config`, each also with a version behind it, as `my_set:1.0.0` or `my_set:1.*.*`; without
        a version the newest counts.
      data_dir: where TFDS data sets lie.

    Raises:
      UserError: a wrong name, or there is no such data set.
    """
    import tensorflow_datasets as tfds
    from tensorflow_datasets.core.read_only_builder import builder_from_files

    try:
        return Path(builder_from_files(name, data_dir=data_dir).data_path)
    except (tfds.core.DatasetNotFoundError, OSError):
        known = sorted(str(path.parent.relative_to(data_dir)) for path in data_dir.glob("*/**/dataset_info.json"))
        there = f"there are {', '.join(known[:10])}" if known else "there is none"
        raise UserError(f"{data_dir}: no prepared TFDS data set '{name}'; {there}") from None
    except ValueError as error:
        raise UserError(f"'{name}': not the name of a TFDS data set: {' '.join(str(error).split())}") from None


def turns_from_json(text: bytes, place: str, images: int) -> tuple[Turn, ...]:
    """Turns from InternVL's `conversations` list, under the rules of annotation files (`records.read_turns`).

    Args:
      text: the list in JSON, in UTF-8.
      place: what to call the record in an error.
      images: how many it has.

    Raises:
      RecordError: naming the record and the field.
    """
    try:
        messages = json.loads(text.decode())
    except (ValueError, RecursionError) as error:
        bad(place, "json", "conversations", f"not valid JSON: {' '.join(str(error).split())}")
    return read_turns({"conversations": messages}, place, images)
