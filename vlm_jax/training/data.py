"""Where a recipe's conversations come from: a kind of data, opened for a run as its splits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from vlm_jax.config import config_class
from vlm_jax.data.open import open_data
from vlm_jax.data.sources import ManySources, Source, TFDSSource
from vlm_jax.errors import UserError


@dataclasses.dataclass(frozen=True)
class Splits:
    """Random-access conversations: what is trained on, what is looked at meanwhile, what is measured at the end.

    Data need not have the last two; then nothing is looked at or measured.
    """

    train: Source
    validation: Source | None = None
    test: Source | None = None


@config_class
class PocketData:
    """The pocket data set, built from material that comes with ordinary packages (`vlm_jax.data.pocket`).

    Attributes:
      preset: its size.
      directory: where it is built, or found; '' is `data/` in the workdir.
    """

    type: Literal["pocket"] = "pocket"
    preset: Literal["default", "quick", "tiny"] = "default"
    directory: str = ""

    def open(self, workdir: Path, seed: int, say: Callable[[str], None]) -> Splits:
        """Builds the data set unless it is there, and opens it."""
        from vlm_jax.data.pocket import prepare_pocket

        folder = Path(self.directory) if self.directory else workdir / "data"
        return _splits(prepare_pocket(folder, self.preset, seed, progress=say))


@config_class
class TFDSData:
    """A prepared TFDS data set with the features of `vlm_jax.data.schema`, read without TensorFlow.

    Attributes:
      directory: the folder that holds its `dataset_info.json`.
    """

    type: Literal["tfds"] = "tfds"
    directory: str = ""

    def open(self, workdir: Path, seed: int, say: Callable[[str], None]) -> Splits:
        """Opens the data set; nothing is built."""
        del workdir, seed, say
        return _splits(Path(self.directory))


@config_class
class MetaData:
    """Data of any kind that `vlm_jax.data.open` knows, by path: InternVL's meta files, records in JSON, Parquet, ...

    How often a source's records are used follows from a meta file's `repeat_time`, unless a stage gives `data.weights`
    by the sources' names.

    Attributes:
      train, validation, test: paths of the splits' data; '' is no such split. Of data that has several splits by itself
        the one of that name is read.
    """

    type: Literal["meta"] = "meta"
    train: str = ""
    validation: str = ""
    test: str = ""

    def open(self, workdir: Path, seed: int, say: Callable[[str], None]) -> Splits:
        """Opens the files and says what is in them; no record is read yet."""
        del seed
        if not self.train:
            raise UserError("config.data.train: the path of a meta file is missing (--config.data.train=META.json)")
        folder = workdir / "data"
        folder.mkdir(parents=True, exist_ok=True)
        splits = {}
        for split in ("train", "validation", "test"):
            path = getattr(self, split)
            if not path:
                continue
            try:
                splits[split] = opened = open_data(path, split=split, index_folder=folder)
            except UserError as error:
                raise UserError(f"config.data.{split}: {error}") from None
            say(f"{split}: {len(opened):,} records{_parts(opened)}")
        return Splits(**splits)


def _parts(source: Source) -> str:
    """How many records each part of a meta file has, and how often an epoch holds each."""
    if not isinstance(source, ManySources):
        return ""
    parts = (f"{part.task} {len(part):,} x {source.weights[part.task]:g}" for part in source.parts)
    return f" ({', '.join(parts)})"


def _splits(folder: Path) -> Splits:
    return Splits(*(TFDSSource(folder, split) for split in ("train", "validation", "test")))
