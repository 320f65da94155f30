"""Builds the pocket data set once, in parallel; killed at any moment, the next call builds it anew."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from vlm_jax.data.pocket.presets import PRESETS
from vlm_jax.errors import UserError

SECONDS_BETWEEN_LINES = 5.0

IN_PROCESS = 500
"""Up to so many records are drawn in the calling process: starting others takes longer."""


def prepare_pocket(
    data_dir: str | Path, preset: str = "default", seed: int = 0, progress: Callable[[str], None] | None = None
) -> Path:
    """Returns the folder of the prepared data set, which is built unless it is there.

    The same preset and seed give the same bytes. The folder appears under its name by one rename when everything in it
    is written; another process that prepares the same folder meanwhile is waited for.

    Args:
      data_dir: where TFDS data sets live; the result is `data_dir/pocket/<preset>_<seed>/<version>`.
      preset: a name in `PRESETS`.
      seed: decides the division of the raw material and every record.
      progress: called with a line of text now and then.

    Raises:
      UserError: an unknown preset, a folder that cannot be written, or raw material that is not installed.
    """
    if preset not in PRESETS:
        raise UserError(f"pocket data: no preset '{preset}', there are {', '.join(PRESETS)}")
    if seed < 0:
        raise UserError(f"pocket data: the seed must not be negative, got {seed}")
    data_dir = Path(data_dir)
    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        with _only_one(data_dir / ".pocket.lock"):
            return _prepare(data_dir, preset, seed, progress or (lambda line: None))
    except OSError as error:
        raise UserError(f"{data_dir}: cannot write the pocket data set: {error.strerror or error}") from error


def _prepare(data_dir: Path, preset: str, seed: int, say: Callable[[str], None]) -> Path:
    from vlm_jax.data.pocket.builder import Pocket

    final = data_dir / "pocket" / f"{preset}_{seed}" / str(Pocket.VERSION)
    if (final / "dataset_info.json").exists():
        return final
    staging = data_dir / ".pocket.incomplete"
    shutil.rmtree(staging, ignore_errors=True)
    shutil.rmtree(final, ignore_errors=True)  # without its description it is nobody's data set
    written = _write(staging, preset, seed, say)
    final.parent.mkdir(parents=True, exist_ok=True)
    written.rename(final)
    shutil.rmtree(staging)
    return final


def _write(staging: Path, preset: str, seed: int, say: Callable[[str], None]) -> Path:
    """Lets TFDS write the data set under `staging`; returns its version folder."""
    import tensorflow_datasets as tfds

    from vlm_jax.data.pocket.builder import Pocket, pocket_config

    config = pocket_config(preset, seed)
    config = Pocket.builder_configs.get(config.name, config)  # TFDS wants its own object where it knows the name
    builder = Pocket(data_dir=staging, config=config, file_format="array_record")
    total = PRESETS[preset].total
    builder.workers = 0 if total <= IN_PROCESS else _cores()
    stdout = sys.stdout

    def say_aloud(line: str) -> None:
        with contextlib.redirect_stdout(stdout):
            say(line)

    builder.advance = _Counter(total, say_aloud)
    tfds.disable_progress_bar()
    with contextlib.redirect_stdout(io.StringIO()):  # TFDS prints where it writes, which is not where it will be
        builder.download_and_prepare(download_dir=staging / "downloads")
    return Path(builder.data_path)


def _cores() -> int:
    """Drawing processes: the cores that this process may use, at most 8 (writing would not keep up)."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(usable, 8)


class _Counter:
    """Says how many records are drawn, at once and then every few seconds."""

    def __init__(self, total: int, say: Callable[[str], None]) -> None:
        self.done, self.total, self.say = 0, total, say
        self.start = self.last = time.monotonic()
        say(f"Drawing the pocket data set: 0/{total} records")

    def __call__(self, drawn: int) -> None:
        self.done += drawn
        now = time.monotonic()
        if now - self.last >= SECONDS_BETWEEN_LINES or self.done == self.total:
            self.last = now
            self.say(f"Drawing the pocket data set: {self.done}/{self.total} records after {now - self.start:.0f} s")


@contextlib.contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Holds a lock that ends with the process, however it ends."""
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
