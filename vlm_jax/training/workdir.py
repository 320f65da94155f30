"""The folder of one run: its paths, and the rule that the same folder means the same run."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from vlm_jax.config import flatten, to_plain
from vlm_jax.errors import UserError
from vlm_jax.training.recipe import RUNTIME_ONLY, Recipe


class Workdir:
    """Paths of what a run writes.

    Attributes:
      root, config, data, tokenizer, checkpoints, metrics, events, export: see `docs/architecture.md`.
    """

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root)
        self.config = self.root / "config.json"
        self.data = self.root / "data"
        self.tokenizer = self.root / "tokenizer"
        self.checkpoints = self.root / "checkpoints"
        self.metrics = self.root / "metrics.jsonl"
        self.events = self.root / "events"
        self.export = self.root / "export"
        self.report = self.root / "report.json"

    def open(self, recipe: Recipe) -> bool:
        """Makes the folder, or checks that it belongs to `recipe`; returns whether it existed.

        Fields under `config.runtime` may differ: they do not change the numbers.

        Raises:
          UserError: the folder cannot be made, or holds a run whose config differs (naming the fields).
        """
        plain = to_plain(recipe)
        if not self.config.is_file():
            try:
                self.root.mkdir(parents=True, exist_ok=True)
                write_text(self.config, json.dumps(plain, indent=1))
            except OSError as error:
                raise UserError(f"--workdir={self.root}: {error.strerror}") from None
            return False
        try:
            before = json.loads(self.config.read_text())
        except ValueError as error:
            raise UserError(f"{self.config}: not valid JSON ({error}); is this the folder of a run?") from None
        differences = config_differences(before, plain)
        if differences:
            raise UserError(
                f"--workdir={self.root} belongs to a run with another config: {'; '.join(differences)}. "
                "Give another --workdir, or undo the change"
            )
        return True


def config_differences(before: Any, now: Any) -> list[str]:
    """The fields that differ and change the numbers, as `config.seed was 0, is 1`."""
    old, new = flatten(before), flatten(now)
    absent = "absent"
    return [
        f"{path} was {old.get(path, absent)!r}, is {new.get(path, absent)!r}"
        for path in sorted(old.keys() | new.keys())
        if not path.startswith(RUNTIME_ONLY + ".") and old.get(path, absent) != new.get(path, absent)
    ]


def write_text(path: Path, text: str) -> None:
    """Writes a whole file or none of it."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    aside.write_text(text)
    aside.replace(path)
