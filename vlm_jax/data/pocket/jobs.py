"""Drawing the pocket data set in pieces, which processes share among them (`vlm_jax.data.processes`)."""

from __future__ import annotations

import dataclasses

from vlm_jax.data.pocket.material import Material, load_material
from vlm_jax.data.pocket.records import Record, make_record

CHUNK = 32
"""Records a job: half a second of charts, so that workers end soon after a killed caller."""


@dataclasses.dataclass(frozen=True)
class Job:
    """Records `start` to `stop` of a task in a split; `hard` as in `make_record`."""

    split: str
    task: str
    start: int
    stop: int
    hard: bool = False


def make_jobs(split: str, task: str, records: int, hard: bool = False) -> list[Job]:
    """Jobs that together draw `records` records of a task; `hard` as in `make_record`."""
    return [Job(split, task, start, min(start + CHUNK, records), hard) for start in range(0, records, CHUNK)]


class Drawer:
    """Draws the records of a job, for a data set with this seed; the raw material is read with the first."""

    def __init__(self, seed: int) -> None:
        self.seed = seed
        self._materials: dict[str, Material] = {}

    def __call__(self, job: Job) -> list[Record]:
        """The job's records."""
        self._materials = self._materials or load_material(self.seed)
        material = self._materials[job.split]
        return [
            make_record(self.seed, job.split, job.task, number, material, job.hard)
            for number in range(job.start, job.stop)
        ]
