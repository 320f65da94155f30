"""Where a recipe's conversations come from: a kind of data, opened for a run as its splits."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from vlm_jax.config import config_class
from vlm_jax.data.formats.open import open_data
from vlm_jax.data.formats.tfds import TFDSSource, find_tfds, tfds_splits
from vlm_jax.data.sources import ManySources, Source
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
    preset: Literal["default", "large", "quick", "tiny"] = "default"
    directory: str = ""

    def open(self, workdir: Path, seed: int, say: Callable[[str], None]) -> Splits:
        """Builds the data set unless it is there, and opens it."""
        from vlm_jax.data.pocket import prepare_pocket

        folder = Path(self.directory) if self.directory else workdir / "data"
        folder = prepare_pocket(folder, self.preset, seed, progress=say)
        return Splits(*(TFDSSource(folder, split) for split in ("train", "validation", "test")))


@config_class
class TFDSData:
    """A prepared TFDS data set with the features of `data.formats.schema`, in ArrayRecord files, without TensorFlow.

    Attributes:
      directory: the folder that holds its `dataset_info.json`; or
      name: as `my_set`, `my_set/config` or `my_set:1.0.0`, below
      data_dir: the folder of all data sets; '' is TFDS's own (`~/tensorflow_datasets`, or `TFDS_DATA_DIR`).
    """

    type: Literal["tfds"] = "tfds"
    directory: str = ""
    name: str = ""
    data_dir: str = ""

    def open(self, workdir: Path, seed: int, say: Callable[[str], None]) -> Splits:
        """Opens the data set, whose splits `validation` and `test` may be missing; nothing is built."""
        del workdir, seed, say
        if bool(self.directory) == bool(self.name):
            problem = "both are given" if self.name else "neither is given"
            raise UserError(
                f"config.data.directory, config.data.name: {problem}; say --config.data.directory=SETS/my_set/1.0.0, "
                "or --config.data.name=my_set --config.data.data_dir=SETS"
            )
        folder = Path(self.directory)
        if self.name:
            folder = find_tfds(
                self.name, Path(self.data_dir or os.environ.get("TFDS_DATA_DIR", "~/tensorflow_datasets")).expanduser()
            )
        known = tfds_splits(folder)
        if "train" not in known:
            raise UserError(f"{folder}: no split 'train', there are {', '.join(known)}")
        return Splits(*(TFDSSource(folder, s) if s in known else None for s in ("train", "validation", "test")))


@config_class
class MetaData:
    """Data of any kind that `data.formats.open` knows, by path: InternVL's meta files, records in JSON, Parquet, ...

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
