"""Drawing in processes of their own: `python -m vlm_jax.data.pocket.worker` is one, `draw_jobs` runs several.

A worker is a plain child process that reads jobs from its standard input and writes records to its standard output. It
never imports the caller's main module (as `multiprocessing` would, with JAX and all), and when the caller is killed its
input ends, so it ends too.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import BinaryIO

from vlm_jax.data.pocket.material import Material, load_material
from vlm_jax.data.pocket.records import Record, make_record

CHUNK = 32
"""Records a job: half a second of charts, so that workers end soon after a killed caller."""


@dataclasses.dataclass(frozen=True)
class Job:
    """Records `start` to `stop` of a task in a split of the data set with this seed."""

    seed: int
    split: str
    task: str
    start: int
    stop: int

    def draw(self, material: Material) -> list[Record]:
        """The job's records."""
        return [
            make_record(self.seed, self.split, self.task, number, material) for number in range(self.start, self.stop)
        ]


def make_jobs(seed: int, split: str, task: str, records: int) -> list[Job]:
    """Jobs that together draw `records` records of a task."""
    return [Job(seed, split, task, start, min(start + CHUNK, records)) for start in range(0, records, CHUNK)]


def draw_jobs(jobs: Sequence[Job], workers: int) -> Iterator[list[Record]]:
    """The records of each job, in order; drawn in this process if `workers` is 0.

    Raises:
      RuntimeError: a worker ended by itself (its standard error says why).
    """
    if not workers:
        materials = load_material(jobs[0].seed)
        for job in jobs:
            yield job.draw(materials[job.split])
        return
    processes = [_start() for _ in range(workers)]
    idle: queue.SimpleQueue[subprocess.Popen] = queue.SimpleQueue()
    for process in processes:
        idle.put(process)

    def run(job: Job) -> list[Record]:
        process = idle.get()
        try:
            return _ask(process, job)
        finally:
            idle.put(process)

    pool = concurrent.futures.ThreadPoolExecutor(workers)
    try:
        yield from pool.map(run, jobs)
    finally:
        # Also when the caller stops half-way: no job is begun any more, and the one in hand fails at once.
        for process in processes:
            process.kill()
        pool.shutdown(cancel_futures=True)
        for process in processes:
            process.communicate()


def _start() -> subprocess.Popen:
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    return subprocess.Popen(
        [sys.executable, "-m", "vlm_jax.data.pocket.worker"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )


def _ask(process: subprocess.Popen, job: Job) -> list[Record]:
    try:
        pickle.dump(job, process.stdin)
        process.stdin.flush()
        answer = pickle.load(process.stdout)
    except (EOFError, BrokenPipeError, ValueError, pickle.UnpicklingError):
        raise RuntimeError(f"the process that drew {job} ended with code {process.wait()}") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def serve(jobs: BinaryIO, records: BinaryIO) -> None:
    """Draws job after job until its input ends."""
    materials: dict[str, Material] = {}
    while True:
        try:
            job = pickle.load(jobs)
        except EOFError:
            return
        try:
            materials = materials or load_material(job.seed)
            answer = job.draw(materials[job.split])
        except Exception as error:  # noqa: BLE001 - the caller raises it
            answer = error
        pickle.dump(answer, records)
        records.flush()


def main() -> None:
    """Serves on standard input and output; whatever prints goes to standard error."""
    # Ctrl-C reaches the whole group; the caller decides what it means, and the end of the input tells this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    records = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        serve(sys.stdin.buffer, records)
    except BrokenPipeError:
        os._exit(1)  # the caller is gone; nothing is left to flush to


if __name__ == "__main__":
    main()
