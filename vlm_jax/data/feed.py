"""Making batches ahead of time: Grain asks for them by number, in threads or in processes of its own."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from typing import Any

import numpy as np

from vlm_jax.batch import Batch
from vlm_jax.data.pipeline import START, Batches, Loaded, Position
from vlm_jax.data.plan.mixture import MixtureConfig
from vlm_jax.data.prepare import Preparer
from vlm_jax.data.sources import Source


def batches(
    source: Source,
    preparer: Preparer,
    config: MixtureConfig,
    seed: int,
    start: Position = START,
    *,
    stage: int = 0,
    workers: int = 0,
) -> Iterator[Loaded]:
    """Returns an endless iterator over batches, each with the position from which to resume *after* it.

    The source is measured at once; threads and processes start with the first batch and end with the iterator, at
    `close` at the latest.

    Args:
      source: the conversations.
      preparer: makes examples of them.
      config: weights and shapes.
      seed: of the run; at least 0.
      start: where to begin; a position that was yielded earlier continues from there exactly.
      stage: number of the stage, so that stages see different orders.
      workers: 0 makes batches in threads of this process, n in n processes of Grain. The batches are the same.

    Returns:
      Iterator of `Loaded`, with a NumPy batch of `config.rows` rows.

    Raises:
      UserError: as `Batches`.
    """
    return read_ahead(Batches(source, preparer, config, seed, start, stage=stage), workers)


def read_ahead(numbered: Batches, workers: int = 0) -> Iterator[Loaded]:
    """All batches of a sequence in order, made ahead of time (see `batches`)."""
    iterator = _iterator(numbered, workers)
    try:
        for loaded in iterator:
            yield loaded._replace(batch=_owned(loaded.batch)) if workers else loaded
    finally:
        iterator.close()


def _iterator(numbered: Batches, workers: int) -> Any:
    import grain
    from absl import flags

    # Grain reads absl flags, which only `absl.app.run` parses; notebooks, tests and servers come here without.
    if not flags.FLAGS.is_parsed():
        flags.FLAGS.mark_as_parsed()
    threads = 1 if workers else 2
    options = grain.ReadOptions(num_threads=threads, prefetch_buffer_size=threads)
    dataset = grain.MapDataset.source(numbered).to_iter_dataset(options)
    if workers:
        dataset = dataset.mp_prefetch(
            grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=1),
            worker_init_fn=_end_with_parent,
        )
    return iter(dataset)


def _owned(batch: Batch) -> Batch:
    """A copy outside of the shared memory in which a worker hands it over, so that none of that outlives the step."""
    extras = {name: np.array(value) for name, value in batch.extras.items()}
    return Batch(*(np.array(value) for value in batch[:-1]), extras)


def _end_with_parent(worker: int, workers: int) -> None:
    """Makes a worker process end when the process that started it is gone, even if that was killed.

    A terminal sends Ctrl-C to all processes; what it means is for the one that started this one to say.
    """
    del worker, workers
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_wait_for_parent, name="end-with-parent", daemon=True).start()


def _wait_for_parent() -> None:
    # Not PR_SET_PDEATHSIG: that fires when the *thread* that started the worker ends, and Grain starts workers from
    # short-lived threads. The sentinel becomes readable at the death of the process, on every platform. The resource
    # tracker of multiprocessing removes shared memory once the last of its users is gone.
    import multiprocessing

    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)
