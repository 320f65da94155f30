"""The folder of one run: its paths, and the rule that the same folder means the same run."""

from __future__ import annotations

import contextlib
import fcntl
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vlm_jax.checkpoints import complete
from vlm_jax.config import build, flatten, to_plain
from vlm_jax.errors import UserError
from vlm_jax.files import write_atomically
from vlm_jax.training.recipe import MAY_CHANGE, Recipe


class Workdir:
    """Paths of what a run writes.

    Attributes:
      root, config, data, tokenizer, checkpoints, metrics, quarantine, events, export: see `docs/architecture.md`.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.config = self.root / "config.json"
        self.data = self.root / "data"
        self.tokenizer = self.root / "tokenizer"
        self.checkpoints = self.root / "checkpoints"
        self.metrics = self.root / "metrics.jsonl"
        self.quarantine = self.root / "quarantine.jsonl"
        self.events = self.root / "events"
        self.export = self.root / "export"
        self.report = self.root / "report.json"

    def open(self, recipe: Recipe) -> bool:
        """Makes the folder, or checks that it belongs to `recipe`; returns whether it existed.

        Fields under `config.runtime` may differ, and where the data lies. As long as there is no checkpoint, everything
        may.

        Raises:
          UserError: the folder cannot be made, or holds a run whose config differs (naming the fields).
        """
        plain = to_plain(recipe)
        existed = self.config.is_file()
        if existed:
            differences = config_differences(self._read_config(), plain)
            if not differences:
                return True
            if complete(self.checkpoints):
                raise UserError(
                    f"--workdir={self.root} belongs to a run with another config: {'; '.join(differences)}. "
                    "Give another --workdir, or undo the change"
                )
            # Nothing was trained yet (a first attempt was refused): the new config may have the folder.
            shutil.rmtree(self.tokenizer, ignore_errors=True)
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            write_atomically(self.config, json.dumps(plain, indent=1))
        except OSError as error:
            raise UserError(f"--workdir={self.root}: {error.strerror}") from None
        return existed

    def _read_config(self) -> Any:
        """What the run was begun with. Fields that came later have their defaults, which are what was before."""
        try:
            found = json.loads(self.config.read_text())
        except ValueError as error:
            raise UserError(f"{self.config}: not valid JSON ({error}); is this the folder of a run?") from None
        with contextlib.suppress(UserError):  # of a field that is no more: it differs
            found = to_plain(build(Recipe, found))
        return found

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """Holds the folder for one process at a time; the lock ends with the process, however it ends.

        Raises:
          UserError: another process is running there, or the folder cannot be made.
        """
        try:
            self.root.mkdir(parents=True, exist_ok=True)
            file = (self.root / ".lock").open("w")
        except OSError as error:
            raise UserError(f"--workdir={self.root}: {error.strerror}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise UserError(f"--workdir={self.root}: another process is running in it") from None
            yield


def config_differences(before: Any, now: Any) -> list[str]:
    """The fields that differ and change the numbers, as `config.seed was 0, is 1`."""
    old, new = flatten(before), flatten(now)
    absent = "absent"
    return [
        f"{path} was {old.get(path, absent)!r}, is {new.get(path, absent)!r}"
        for path in sorted(old.keys() | new.keys())
        if not path.startswith(MAY_CHANGE) and old.get(path, absent) != new.get(path, absent)
    ]
