"""Work in processes of their own: `python -m vlm_jax.data.processes` is one, `in_order` runs several.

A worker is a plain child process that reads jobs from its standard input and writes results to its standard output. It
never imports the caller's main module (as `multiprocessing` would, with JAX and all, and in scripts without a main
guard again and again), and when the caller is killed its input ends, so it ends too.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import os
import pickle
import queue
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import Any, BinaryIO, TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def in_order(work: Callable[[Job], Result], jobs: Sequence[Job], workers: int) -> Iterator[Result]:
    """The results of `work` for each job, in order.

    Args:
      work: picklable; every process gets one copy, which may keep what it needs from job to job.
      jobs: picklable, as their results are.
      workers: number of processes; 0 works in this one.

    Raises:
      RuntimeError: a worker ended by itself (its standard error says why).
      Exception: what `work` raised.
    """
    if not workers:
        yield from map(work, jobs)
        return
    processes = [_start(work) for _ in range(min(workers, len(jobs)))]
    idle: queue.SimpleQueue[subprocess.Popen] = queue.SimpleQueue()
    for process in processes:
        idle.put(process)

    def run(job: Job) -> Result:
        process = idle.get()
        try:
            return _ask(process, job)
        finally:
            idle.put(process)

    pool = concurrent.futures.ThreadPoolExecutor(max(1, len(processes)))
    try:
        yield from pool.map(run, jobs)
    finally:
        # Also when the caller stops half-way: no job is begun any more, and the one in hand fails at once.
        for process in processes:
            process.kill()
        pool.shutdown(cancel_futures=True)
        for process in processes:
            process.communicate()


def _start(work: Callable[[Any], Any]) -> subprocess.Popen:
    path = os.pathsep.join(entry or os.getcwd() for entry in sys.path)
    process = subprocess.Popen(
        [sys.executable, "-m", "vlm_jax.data.processes"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
    )
    with contextlib.suppress(BrokenPipeError):  # it has ended already, which the first job will say
        pickle.dump(work, process.stdin)
    return process


def _ask(process: subprocess.Popen, job: Any) -> Any:
    try:
        pickle.dump(job, process.stdin)
        process.stdin.flush()
        answer = pickle.load(process.stdout)
    except (EOFError, BrokenPipeError, ValueError, pickle.UnpicklingError):
        raise RuntimeError(f"the process that worked on {job} ended with code {process.wait()}") from None
    if isinstance(answer, Exception):
        raise answer
    return answer


def serve(jobs: BinaryIO, results: BinaryIO) -> None:
    """Does job after job until its input ends; what does them comes first."""
    work = pickle.load(jobs)
    while True:
        try:
            job = pickle.load(jobs)
        except EOFError:
            return
        try:
            answer = work(job)
        except Exception as error:  # noqa: BLE001 - the caller raises it
            answer = error
        pickle.dump(answer, results)
        results.flush()


def main() -> None:
    """Serves on standard input and output; whatever prints goes to standard error."""
    # Ctrl-C reaches the whole group; the caller decides what it means, and the end of the input tells this process.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    results = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    try:
        serve(sys.stdin.buffer, results)
    except BrokenPipeError:
        os._exit(1)  # the caller is gone; nothing is left to flush to


if __name__ == "__main__":
    main()
