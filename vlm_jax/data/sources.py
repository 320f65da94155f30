"""Sources: random access to conversations, whatever they are stored in.

A source is anything with a length, `source[i] -> Conversation` and a `name`. One that lies in files also says where and
gives a fingerprint of its content, so that what was computed from it can be kept beside it. It may also have weights
of its own, or a quick look at its records. Sources must be picklable: worker processes get a copy.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.records import ROLES
from vlm_jax.errors import UserError

WEIGHTS_FILE = "weights.json"


class Source(Protocol):
    """A sequence of conversations with a name for messages."""

    name: str

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Conversation: ...


@runtime_checkable
class StoredSource(Protocol):
    """A source in files.

    Attributes:
      folder: where an index of it may be written.
    """

    folder: Path

    def fingerprint(self) -> str:
        """Changes when the content changes."""
        ...


@runtime_checkable
class PeekableSource(Protocol):
    """A source that can be measured without reading all of its images."""

    def peek(self, index: int) -> Conversation:
        """The record, with as much of each image's file as its size in pixels is likely to be read from."""
        ...


@runtime_checkable
class DrawnSource(Protocol):
    """A source of which something may be drawn at random in training, without changing a record's size."""

    def draw(self, index: int, key: Sequence[int]) -> Conversation:
        """The record as `key`, of integers from 0, decides; the same key always gives the same one."""
        ...


def draw(source: Source, index: int, key: Sequence[int]) -> Conversation:
    """A record for training: as `key` decides, where the source has something to draw."""
    return source.draw(index, key) if isinstance(source, DrawnSource) else source[index]


@runtime_checkable
class WeighedSource(Protocol):
    """A source that says how often its records are used where a recipe does not.

    Attributes:
      weights: task -> weight (`MixtureConfig.weights`); of tasks that are not named it is 1.
    """

    weights: Mapping[str, float]


@dataclasses.dataclass(frozen=True)
class ManySources:
    """Several sources one after another, each with an index of its own.

    Attributes:
      parts: the sources.
      name: of all together, for messages.
      weights: see `WeighedSource`.
    """

    parts: tuple[Source, ...]
    name: str
    weights: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def __len__(self) -> int:
        return self._ends[-1] if self.parts else 0

    def __getitem__(self, index: int) -> Conversation:
        part, number = self.part(index)
        return part[number]

    def draw(self, index: int, key: Sequence[int]) -> Conversation:
        """See `DrawnSource`."""
        return draw(*self.part(index), key)

    def part(self, index: int) -> tuple[Source, int]:
        """The source that holds record number `index`, and its number there."""
        if not 0 <= index < len(self):
            raise IndexError(f"{self.name}: no record number {index}, there are {len(self)}")
        part = bisect.bisect_right(self._ends, index)
        return self.parts[part], index - (self._ends[part - 1] if part else 0)

    @functools.cached_property
    def _ends(self) -> list[int]:
        return list(itertools.accumulate(len(part) for part in self.parts))


@dataclasses.dataclass(frozen=True)
class MemorySource:
    """Conversations held in memory.

    Attributes:
      conversations: the records.
      name: name for messages.
    """

    conversations: Sequence[Conversation]
    name: str = "memory"

    def __len__(self) -> int:
        return len(self.conversations)

    def __getitem__(self, index: int) -> Conversation:
        return self.conversations[index]


@dataclasses.dataclass(frozen=True)
class TFDSSource:
    """A prepared TFDS data set in ArrayRecord files, read without TensorFlow and without decoding images.

    Features: `id`, `task` and `conversations` are text, the last a JSON list of `{"from": "system|human|gpt", "value":
    text}` (InternVL's format); `images` is a sequence of encoded images (`tfds.features.Image`, or bytes); a data set
    may have the others of `vlm_jax.data.schema`. Where a `weights.json` lies beside its `dataset_info.json`, it says
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
        record = self._records[index]
        name = record["id"].decode()
        return Conversation(
            turns=turns_from_json(record["conversations"].decode(), name),
            images=tuple(bytes(image) for image in record["images"]),
            id=name,
            task=record["task"].decode(),
            independent=bool(record.get("independent", False)),
            place=record.get("place", b"").decode(),
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


def place_of(source: Source, number: int) -> str:
    """What messages call a record of a source, without reading it."""
    if isinstance(source, ManySources):
        return place_of(*source.part(number))
    place = getattr(source, "place", None)
    return place(number) if place else f"{source.name}:{number + 1}"


def turns_from_json(text: str, record: str) -> tuple[Turn, ...]:
    """Turns from InternVL's `conversations` list.

    Raises:
      UserError: naming the record, if the text is not such a list.
    """
    try:
        messages = json.loads(text)
        return tuple(Turn(ROLES[message["from"]], str(message["value"])) for message in messages)
    except (ValueError, TypeError, KeyError) as error:
        raise UserError(
            f'record {record}: conversations must be a JSON list of {{"from": "system|human|gpt", "value": text}} '
            f"({type(error).__name__}: {error})"
        ) from None
