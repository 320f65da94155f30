"""From a source to batches: a position names every batch, and Grain makes batches from their numbers ahead of time.

An epoch's records (`mixture`) are cut into windows of nearly equal size, a window is packed into rows at once, and its
rows are dealt evenly over as few batches as hold them; the rows that a batch has to spare stay empty. So no record is
lost or seen twice, shapes are fixed, and a batch is a pure function of (seed, stage, epoch, window, row): any number of
threads or processes gives the same batches, and a run resumes from a `Position` without any iterator state.
"""

from __future__ import annotations

import bisect
import dataclasses
import os
import signal
import threading
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

import numpy as np

from vlm_jax.batch import Batch, BatchShape, empty_batch
from vlm_jax.data.conversation import RecordError
from vlm_jax.data.index import Index, load_index
from vlm_jax.data.mixture import MixtureConfig, epoch_records, task_weights
from vlm_jax.data.packing import pack_row, plan_rows
from vlm_jax.data.prepare import Example, Preparer
from vlm_jax.data.sources import Source, WeighedSource

_ENDLESS = 1 << 48  # the length of a sequence that Grain never reaches the end of
_PLANS_KEPT = 4


class Position(NamedTuple):
    """Where the data stands: the first row of the batch that comes next."""

    epoch: int = 0
    window: int = 0
    row: int = 0


START = Position()


class Batches:
    """The endless sequence of a stage's batches from a position on: `batches[i] -> (position after it, Batch)`.

    Planning happens on demand and is remembered for a few windows. Threads may share an instance; processes get copies.
    """

    def __init__(
        self,
        source: Source,
        preparer: Preparer,
        config: MixtureConfig,
        seed: int,
        start: Position = START,
        *,
        stage: int = 0,
        index: Index | None = None,
    ) -> None:
        """Measures the source (or reads its index).

        Args:
          source: the conversations.
          preparer: makes examples of them.
          config: weights and shapes.
          seed: of the run; at least 0.
          start: position of batch 0.
          stage: number of the stage, so that stages see different orders.
          index: of the source, where the caller has it already.

        Raises:
          UserError: a record that cannot be used (unreadable; or of positive weight and larger than a row or the
            context), or weights that do not fit the data.
        """
        self.source, self.config, self.start = source, config, Position(*start)
        self.index = load_index(source, preparer) if index is None else index
        # Tokens that a conversation may have: what a row holds, or less.
        limit = min(config.tokens, preparer.max_tokens)
        self.preparer = dataclasses.replace(preparer, too_long=config.too_long, max_tokens=limit)
        self._weights = task_weights(self.index, config, source.weights if isinstance(source, WeighedSource) else None)
        self._key = (seed, stage)
        self._check_sizes("tokens" if config.tokens <= preparer.max_tokens else "max_tokens")
        self._sizes = np.minimum(self.index.sizes, np.array([limit, config.tiles], np.int32))  # after cutting
        # First batch number of every window so far, counted from `start`, with the window's epoch and number.
        self._firsts: list[int] = []
        self._windows: list[tuple[int, int]] = []
        self._plans: dict[tuple[int, int], list[np.ndarray]] = {}
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, number: int) -> tuple[Position, Batch]:
        with self._lock:
            epoch, window, batch_of_window = self._locate(number)
            rows, bounds = self._plan(epoch, window)
            position = self._after(epoch, window, bounds, batch_of_window)
        mine = rows[bounds[batch_of_window] : bounds[batch_of_window + 1]]
        batch = empty_batch(
            BatchShape(
                rows=self.config.rows,
                tokens=self.config.tokens,
                tiles=self.config.tiles,
                patches=self.preparer.patches_per_tile,
                patch_values=self.preparer.patch_values,
            )
        )
        for row, records in enumerate(mine):
            place = (epoch, window, bounds[batch_of_window] + row)
            examples = [self._example(int(record), (*place, number)) for number, record in enumerate(records)]
            pack_row(examples, batch, row, self.preparer.tokens_per_tile)
        return position, batch

    def _example(self, record: int, place: tuple[int, ...]) -> Example:
        """A record made ready for its place: (epoch, window, row, number in the row)."""
        conversation = self.source[record]
        example = self.preparer(conversation, draw=(*self._key, 3, *place))
        size, planned = (len(example.tokens), len(example.patches)), tuple(self._sizes[record].tolist())
        if size != planned:
            raise RecordError(
                conversation.name,
                "image",
                f"has {size[0]} tokens and {size[1]} tiles, but had {planned[0]} and {planned[1]} when the data was "
                "measured; was a picture changed? Delete the index-*.npz files beside the data to measure it again",
            )
        return example

    def count(self, epoch: int) -> int:
        """Number of batches of one epoch."""
        return sum(len(self._plan(epoch, window)[1]) - 1 for window in range(self._window_count(epoch)))

    def rows(self, epoch: int, window: int) -> list[np.ndarray]:
        """Row by row, the numbers of the records that a window packs together."""
        with self._lock:
            found = self._plans.get((epoch, window))
            if found is None:
                records = self._epoch_records(epoch)
                count = self._window_count(epoch)
                bounds = _deal(len(records), count)
                records = records[bounds[window] : bounds[window + 1]]
                rng = np.random.default_rng([*self._key, 2, epoch, window])
                found = [records[row] for row in self._pack(self._sizes[records], rng)]
                while len(self._plans) >= _PLANS_KEPT:
                    self._plans.pop(next(iter(self._plans)))
                self._plans[epoch, window] = found
            return found

    def _pack(self, sizes: np.ndarray, rng: np.random.Generator) -> Iterable[np.ndarray]:
        if self.config.packing:
            return plan_rows(sizes, self.config.tokens, self.config.tiles, rng)
        return np.arange(len(sizes))[:, None]  # they are in random order already

    def _plan(self, epoch: int, window: int) -> tuple[list[np.ndarray], list[int]]:
        """A window's rows, and the first row of every batch with the number of rows at the end."""
        rows = self.rows(epoch, window)
        return rows, _deal(len(rows), -(-len(rows) // self.config.rows))

    def _locate(self, number: int) -> tuple[int, int, int]:
        """Epoch, window and batch of the window for batch `number` from the start."""
        if not self._firsts:
            self._add_first_window()
        while True:
            place = bisect.bisect_right(self._firsts, number) - 1
            epoch, window = self._windows[place]
            of_window = number - self._firsts[place]
            count = len(self._plan(epoch, window)[1]) - 1
            if of_window < count:
                return epoch, window, of_window
            self._windows.append(self._next_window(epoch, window))
            self._firsts.append(self._firsts[place] + count)

    def _add_first_window(self) -> None:
        epoch, window, row = self.start
        if not window and not self._window_count(epoch):  # an epoch may be empty where all weights are fractions
            epoch, window = self._next_window(epoch, window)
        if window >= self._window_count(epoch):
            raise ValueError(f"{self.start}: epoch {epoch} has {self._window_count(epoch)} windows")
        _, bounds = self._plan(epoch, window)
        if row not in bounds[:-1]:
            raise ValueError(f"{self.start}: no batch begins at this row")
        self._windows.append((epoch, window))
        self._firsts.append(-bounds.index(row))

    def _next_window(self, epoch: int, window: int) -> tuple[int, int]:
        if window + 1 < self._window_count(epoch):
            return epoch, window + 1
        epoch += 1
        while not self._window_count(epoch):
            epoch += 1
        return epoch, 0

    def _after(self, epoch: int, window: int, bounds: list[int], batch_of_window: int) -> Position:
        if batch_of_window + 2 < len(bounds):
            return Position(epoch, window, bounds[batch_of_window + 1])
        return Position(*self._next_window(epoch, window), 0)

    def _window_count(self, epoch: int) -> int:
        return -(-len(self._epoch_records(epoch)) // self.config.window)

    def _epoch_records(self, epoch: int) -> np.ndarray:
        # The last one is kept: it is asked for with every window.
        kept = self.__dict__.get("_kept_epoch")
        if kept is None or kept[0] != epoch:
            kept = (epoch, epoch_records(self.index, self._weights, self._key, epoch))
            self._kept_epoch = kept
        return kept[1]

    def _check_sizes(self, name: str) -> None:
        """Refuses records that are used and that no row holds; `name` is the field that limits their tokens."""
        limit, (tokens, tiles) = self.preparer.max_tokens, self.index.sizes.T
        can_be_cut = (self.index.least <= limit) & (self.config.too_long == "truncate")
        fits = ((tokens <= limit) | can_be_cut) & (tiles <= self.config.tiles)
        too_large = np.flatnonzero((self._weights[self.index.task_ids] > 0) & ~fits)
        if len(too_large):
            first = int(too_large[0])
            least = f" ({self.index.least[first]} when it is cut)" if self.config.too_long == "truncate" else ""
            raise RecordError(
                self.source[first].name,
                "too long",
                f"does not fit a row: {tokens[first]} tokens{least} and {tiles[first]} tiles; {name} is {limit} and "
                f"tiles is {self.config.tiles} ({len(too_large)} such record(s) in {self.source.name})",
            )


def batches(
    source: Source,
    preparer: Preparer,
    config: MixtureConfig,
    seed: int,
    start: Position = START,
    *,
    stage: int = 0,
    workers: int = 0,
) -> Iterator[tuple[Position, Batch]]:
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
      Iterator of `(position, batch)`, with a NumPy batch of `config.rows` rows.

    Raises:
      UserError: as `Batches`; while iterating, for an image that turns out to be damaged when it is decoded.
    """
    return read_ahead(Batches(source, preparer, config, seed, start, stage=stage), workers)


def read_ahead(numbered: Batches, workers: int = 0) -> Iterator[tuple[Position, Batch]]:
    """All batches of a sequence in order, made ahead of time (see `batches`)."""
    iterator = _iterator(numbered, workers)
    try:
        for position, batch in iterator:
            yield position, (_owned(batch) if workers else batch)
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


def _deal(items: int, parts: int) -> list[int]:
    """Bounds that cut `items` into `parts` whose sizes differ by at most one."""
    return [items * part // parts for part in range(parts + 1)] if parts else [0]
