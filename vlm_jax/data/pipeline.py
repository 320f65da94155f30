"""From a source to batches: a position names every batch, and a number that of a batch from there on.

An epoch's records (`mixture`) are cut into windows of nearly equal size, a window is packed into rows at once, and its
rows are dealt evenly over as few batches as hold them; the rows that a batch has to spare stay empty. (Or, in place of
packing, records of one modality and like length share a batch: `grouping`.) So no record is lost or seen twice, shapes
are fixed, and a row is a pure function of (seed, stage, epoch, window, number): any number of threads, processes or
hosts gives the same batches, and a run resumes from a `Position` without any iterator state.

A record that cannot be used according to the index is not planned at all. One that turns out to be bad when it is
loaded leaves a hole of zero weight where it was to stand, shifts nothing, and is handed out beside the batch.
"""

from __future__ import annotations

import bisect
import dataclasses
import hashlib
import threading
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from vlm_jax.batch import Batch, BatchShape, empty_batch
from vlm_jax.data.conversation import RecordError
from vlm_jax.data.plan.fit import fit
from vlm_jax.data.plan.grouping import deal, group
from vlm_jax.data.plan.index import BAD, Index, load_index
from vlm_jax.data.plan.mixture import MixtureConfig, epoch_records
from vlm_jax.data.plan.packing import pack_row, plan_rows
from vlm_jax.data.prepare import Example, Preparer
from vlm_jax.data.sources import Source, draw, parts_of
from vlm_jax.errors import UserError

_ENDLESS = 1 << 48  # the length of a sequence that Grain never reaches the end of
_PLANS_KEPT = 4
_LEAST_OF_AN_EPOCH = 0.01  # records; of fewer, many epochs in a row are empty, and finding the next takes long


class Position(NamedTuple):
    """Where the data stands: the first row of the batch that comes next."""

    epoch: int = 0
    window: int = 0
    row: int = 0


START = Position()


class Loaded(NamedTuple):
    """A batch as it comes out of the pipeline.

    Attributes:
      position: from which to resume after it.
      batch: NumPy arrays.
      bad: records of it that turned out to be bad when they were loaded.
    """

    position: Position
    batch: Batch
    bad: tuple[RecordError, ...] = ()


class _Plan(NamedTuple):
    """Of a window: row by row the numbers of its records, and the first row of every batch with their number."""

    rows: list[np.ndarray]
    bounds: list[int]


class NothingLeftError(UserError):
    """A source of which no record can be used.

    Attributes:
      bad: all records of the data that cannot be used.
    """

    def __init__(self, message: str, bad: Mapping[int, RecordError]) -> None:
        super().__init__(message)
        self.bad = tuple(bad.values())


class Batches:
    """The endless sequence of a stage's batches from a position on.

    Planning happens on demand and is remembered for a few windows. Threads may share an instance; processes get copies.

    Attributes:
      shape: tokens and tile slots of a row.
      bad: what is known beforehand to be unusable, the records that no row holds among them; not those of tasks that
        the stage does not use (a conversation is no caption, which matters to a stage of captions alone).
      digest: of everything that decides which records stand where; a position means nothing where it differs.
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
        rows: Sequence[int] | None = None,
    ) -> None:
        """Measures the source (or reads its index).

        Args:
          source: the conversations.
          preparer: makes examples of them; its `max_tokens` is the context of the model.
          config: weights and shapes.
          seed: of the run; at least 0.
          start: position of batch 0.
          stage: number of the stage, so that stages see different orders.
          index: of the source, where the caller has it already.
          rows: of every batch, the numbers of the rows that are loaded here, where hosts share the work; else all.

        Raises:
          NothingLeftError: a source of which no record is left.
          UserError: weights that do not fit the data.
        """
        self.source, self.config, self.start = source, config, Position(*start)
        index = load_index(source, preparer) if index is None else index
        _check_parts(source, index, config)
        self.shape, limit, self.index, self._weights = fit(source, index, config, preparer.max_tokens)
        _check_parts(source, self.index, config, self._weights)
        self.bad = tuple(error for error in self.index.bad.values() if _matters(error, config))
        self.preparer = dataclasses.replace(preparer, too_long=config.too_long, max_tokens=limit)
        self._key = (seed, stage)
        self._sizes = np.minimum(self.index.sizes, np.array([limit, self.shape.tiles], np.int32))  # after cutting
        self._here = tuple(range(config.rows)) if rows is None else tuple(rows)
        # First batch number of every window so far, counted from `start`, with the window's epoch and number.
        self._firsts: list[int] = []
        self._windows: list[tuple[int, int]] = []
        self._plans: dict[tuple[int, int], _Plan] = {}
        self._lock = threading.RLock()

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_plans": {}, "_lock": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, _lock=threading.RLock())

    def __len__(self) -> int:
        return _ENDLESS

    def __getitem__(self, number: int) -> Loaded:
        with self._lock:
            epoch, window, batch_of_window = self._locate(number)
            rows, bounds = self._plan(epoch, window)
            position = self._after(epoch, window, bounds, batch_of_window)
        first, end = bounds[batch_of_window : batch_of_window + 2]
        batch = empty_batch(
            BatchShape(
                rows=len(self._here),
                tokens=self.shape.tokens,
                tiles=self.shape.tiles,
                patches=self.preparer.patches_per_tile,
                patch_values=self.preparer.patch_values,
            )
        )
        bad: list[RecordError] = []
        for slot, row in enumerate(self._here):
            if first + row < end:
                self._fill(batch, slot, rows[first + row], (epoch, window, first + row), bad)
        return Loaded(position, batch, tuple(bad))

    def _fill(
        self, batch: Batch, slot: int, records: np.ndarray, place: tuple[int, ...], bad: list[RecordError]
    ) -> None:
        """Loads the records of the row at `place` into row `slot` of a batch; adds to `bad` what cannot be loaded."""
        examples: list[Example | None] = []
        for number, record in enumerate(records.tolist()):
            try:
                examples.append(self._example(record, (*place, number)))
            except RecordError as error:
                examples.append(None)
                bad.append(error)
        pack_row(examples, batch, slot, self.preparer.tokens_per_tile, self._sizes[records])

    def _example(self, record: int, place: tuple[int, ...]) -> Example:
        """A record made ready for its place: (epoch, window, row, number in the row)."""
        key = (*self._key, 3, *place)
        conversation = draw(self.source, record, key)
        example = self.preparer(conversation, draw=key)
        size, planned = (len(example.tokens), len(example.patches)), tuple(self._sizes[record].tolist())
        if size != planned:
            raise RecordError(
                conversation.name,
                "changed",
                f"has {size[0]} tokens and {size[1]} tiles, but had {planned[0]} and {planned[1]} when the data was "
                "measured; was a picture changed? Delete the index-*.npz files beside the data to measure it again",
            )
        return example

    @property
    def digest(self) -> str:
        """See the class."""
        config = dataclasses.replace(self.config, weights={})
        known = hashlib.sha256(repr((self._key, config, self.shape[:2], self.index.tasks)).encode())
        known.update(b"" if config.order == "random" else config.order.encode())
        for array in (self._sizes, self.index.task_ids, self._weights):
            known.update(np.ascontiguousarray(array).data)
        return known.hexdigest()[:24]

    def count(self, epoch: int) -> int:
        """Number of batches of one epoch."""
        return sum(len(self._plan(epoch, window)[1]) - 1 for window in range(self._window_count(epoch)))

    def rows(self, epoch: int, window: int) -> list[np.ndarray]:
        """Row by row, the numbers of the records that a window packs together."""
        return self._plan(epoch, window).rows

    def _plan(self, epoch: int, window: int) -> _Plan:
        with self._lock:
            found = self._plans.get((epoch, window))
            if found is None:
                records = self._epoch_records(epoch)
                count = self._window_count(epoch)
                bounds = deal(len(records), count)
                records = records[bounds[window] : bounds[window + 1]]
                rng = np.random.default_rng([*self._key, 2, epoch, window])
                rows, bounds = self._share(self._sizes[records], rng)
                found = _Plan([records[row] for row in rows], bounds)
                while len(self._plans) >= _PLANS_KEPT:
                    self._plans.pop(next(iter(self._plans)))
                self._plans[epoch, window] = found
            return found

    def _share(self, sizes: np.ndarray, rng: np.random.Generator) -> _Plan:
        """Which of so many records share a row, and which rows a batch."""
        if self.config.order == "group":
            order, bounds = group(sizes, self.config.rows, rng)
            return _Plan(list(order[:, None]), bounds)
        if self.config.packing:
            rows = plan_rows(sizes, self.shape.tokens, self.shape.tiles, rng)
        else:
            rows = list(np.arange(len(sizes))[:, None])  # they are in random order already
        return _Plan(rows, deal(len(rows), -(-len(rows) // self.config.rows)))

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


def _matters(error: RecordError, config: MixtureConfig) -> bool:
    """Whether a record that cannot be used is one of those that the stage asks for, as far as is known."""
    return not config.weights or not error.task or config.weights.get(error.task, 0.0) > 0


def _check_parts(source: Source, index: Index, config: MixtureConfig, weights: np.ndarray | None = None) -> None:
    """Refuses data of which a source that is asked for has no record left, or of which none has a weight."""
    first = 0
    for part in parts_of(source):
        end = first + len(part)
        none_left = (index.task_ids[first:end] == BAD).all()
        if none_left and any(_matters(index.bad[number], config) for number in range(first, end)):
            raise NothingLeftError(
                f"{part.name}: none of its {len(part)} record(s) can be used; the first: {index.bad[first]}", index.bad
            )
        first = end
    if weights is None:
        return
    if not (weights[index.task_ids[index.task_ids != BAD]] > 0).any():
        example = f"; the first that cannot be used: {next(iter(index.bad.values()))}" if index.bad else ""
        raise NothingLeftError(f"{source.name}: no record of positive weight is left{example}", index.bad)
    records = float(weights @ [np.count_nonzero(index.task_ids == task) for task in range(len(weights))])
    if records < _LEAST_OF_AN_EPOCH:
        raise UserError(f"weights: an epoch would hold {records:.2g} records on average; make them larger")
