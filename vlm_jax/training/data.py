"""Where a recipe's conversations come from: a kind of data, opened for a run as its splits."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Literal

from vlm_jax.config import config_class
from vlm_jax.data.sources import Source, TFDSSource


@dataclasses.dataclass(frozen=True)
class Splits:
    """Random-access conversations: what is trained on, what is looked at meanwhile, what is measured at the end."""

    train: Source
    validation: Source
    test: Source


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


def _splits(folder: Path) -> Splits:
    return Splits(*(TFDSSource(folder, split) for split in ("train", "validation", "test")))
