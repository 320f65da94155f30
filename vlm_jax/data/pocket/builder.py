"""The TFDS builder of the pocket data set. Neither writing nor reading needs TensorFlow."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator

import tensorflow_datasets as tfds

from vlm_jax.data.formats.schema import conversation_features, stable, to_record
from vlm_jax.data.pocket.jobs import Drawer, make_jobs
from vlm_jax.data.pocket.presets import PRESETS, Preset
from vlm_jax.data.processes import in_order


@dataclasses.dataclass(kw_only=True)
class PocketConfig(tfds.core.BuilderConfig):
    """How many records, and from which seed; see `Preset`."""

    preset: Preset = PRESETS["default"]
    seed: int = 0


def pocket_config(preset: str, seed: int) -> PocketConfig:
    """The config of a preset and a seed, named after both."""
    description = f"Preset '{preset}', seed {seed}."
    return PocketConfig(name=f"{preset}_{seed}", description=description, preset=PRESETS[preset], seed=seed)


class _LocalInfo(tfds.core.DatasetInfo):
    """Asks no server for statistics that somebody else computed (and leaves no empty folder behind for the answer)."""

    def initialize_from_bucket(self) -> None:
        """Does nothing."""


class _StableWriter(tfds.core.ExampleWriter):
    """Writes every example with its features in one order; protocol buffers else choose one in each process."""

    def write(self, path, examples):
        """Writes serialized examples, as the base class does."""
        return super().write(path, ((key, stable(example)) for key, example in examples))


class Pocket(tfds.core.GeneratorBasedBuilder):
    """Pocket data set: six visual tasks from handwritten digits, photographs, fonts and words that come in wheels.

    Attributes:
      workers: processes that draw; 0 draws in this one.
      advance: called with the number of records just drawn.
    """

    VERSION = tfds.core.Version("1.4.0")
    RELEASE_NOTES = {  # noqa: RUF012 - TFDS's own attribute
        "1.2.0": "Everything is asked about a training picture, each question by itself.",
        "1.3.0": "Training searches digits and adds neighbours up, and asks more often what is hard.",
        "1.4.0": "Only `large` asks more often what is hard, and only `large` and `tiny` hold searches.",
    }
    BUILDER_CONFIGS = [pocket_config(preset, 0) for preset in PRESETS]  # noqa: RUF012

    workers: int = 0
    advance: Callable[[int], None] = staticmethod(lambda drawn: None)

    def _info(self) -> _LocalInfo:
        """Features and description."""
        return _LocalInfo(
            builder=self,
            description="Conversations about handwritten digit grids, receipts, forms, bar charts, things to point at "
            "and photograph crops. Sources and their terms are listed in vlm_jax.data.pocket.material.",
            features=conversation_features(),
        )

    def _split_generators(self, dl_manager: tfds.download.DownloadManager) -> dict[str, Iterator]:
        """Train, validation and test; nothing is downloaded."""
        del dl_manager
        return {split: self._generate_examples(split) for split in self.builder_config.preset.records}

    def _example_writer(self) -> _StableWriter:
        """TFDS's place to choose how examples are written."""
        return _StableWriter(file_format=self.info.file_format)

    def _generate_examples(self, split: str) -> Iterator[tuple[str, dict]]:
        """The records of all tasks; TFDS shuffles them by the hash of their ids when it writes."""
        config = self.builder_config
        records = config.preset.records[split]
        jobs = [job for task in records for job in make_jobs(split, task, records[task], config.preset.hard)]
        for drawn in in_order(Drawer(config.seed), jobs, self.workers):
            for record in drawn:
                yield record.conversation.id, to_record(record.conversation, record.provenance)
            self.advance(len(drawn))
