"""Checkpoints: the only file that knows Orbax.

`checkpoints/<number>/` holds `params/` and `optimizer/` (Orbax), `meta.json` and, written last, `manifest.json` with a
digest of every file. A checkpoint without a manifest does not exist: it was cut off. A restore verifies the digests
first, because a flipped byte in array data otherwise restores silently wrong.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import re
import shutil
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import jax
import numpy as np
import orbax.checkpoint as ocp

from vlm_jax.errors import UserError
from vlm_jax.files import is_full_disk, read_json, write_atomically

MANIFEST = "manifest.json"
META = "meta.json"

FORMAT = 3
"""Of the optimizer state and the meta; to be raised when either changes."""

_NUMBERED = re.compile(r"\d{8,}")
"""Folders of checkpoints. What has another name is somebody else's and stays."""


class Checkpoints:
    """Writes and reads the numbered checkpoints of one run. Saving runs in the background, one at a time."""

    def __init__(self, folder: Path, keep: int = 2) -> None:
        """Opens `folder` (made if missing) and removes what an interrupted save left there.

        Args:
          folder: the run's `checkpoints/`.
          keep: how many of the newest to keep; those saved with `permanent=True` always stay.
        """
        self.folder = Path(folder)
        self.keep = keep
        self.folder.mkdir(parents=True, exist_ok=True)
        for entry in self.folder.iterdir():
            if _NUMBERED.fullmatch(entry.name) and not (entry / MANIFEST).is_file():
                shutil.rmtree(entry)
        # What fails in Orbax's threads is raised here as well; there it would be logged once for every file.
        for name in ("absl", "asyncio"):
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._saver = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._optimizer_saver = ocp.AsyncCheckpointer(ocp.PyTreeCheckpointHandler())
        self._background = ThreadPoolExecutor(1, "checkpoint")
        self._pending: Future[None] | None = None

    def save(
        self, number: int, params: Mapping[str, Any], optimizer: Any, meta: dict[str, Any], *, permanent: bool = False
    ) -> None:
        """Starts writing checkpoint `number` (after finishing the one before).

        Args:
          number: its name; larger is newer.
          params: nested dict of arrays.
          optimizer: any pytree of arrays; without any, nothing is written.
          meta: JSON values that say where the run stands.
          permanent: keep it whatever comes later (the end of a stage).

        Raises:
          UserError: the disk is full; what was saved before is untouched.
        """
        self.finish()
        path = self.folder / f"{number:08d}"
        try:
            shutil.rmtree(path, ignore_errors=True)
            path.mkdir()
            write_atomically(path / META, json.dumps({**meta, "format": FORMAT, "permanent": permanent}, indent=1))
            self._saver.save(path.absolute() / "params", args=ocp.args.PyTreeSave(dict(params)))
            leaves = {str(i): leaf for i, leaf in enumerate(jax.tree.leaves(optimizer))}
            if leaves:
                self._optimizer_saver.save(path.absolute() / "optimizer", args=ocp.args.PyTreeSave(leaves))
        except Exception as error:  # noqa: BLE001  (sorted out, and raised again, in _failed)
            self._failed(path, error)
        # Its manifest is written as soon as the files are, not when the next save comes: a kill in between loses less.
        self._pending = self._background.submit(self._complete, path)

    def finish(self) -> None:
        """Waits for the save under way.

        Raises:
          UserError: the disk is full.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _complete(self, path: Path) -> None:
        """Makes the checkpoint at `path` exist, when all of it is on the disk, by writing its manifest."""
        try:
            self._saver.wait_until_finished()
            self._optimizer_saver.wait_until_finished()
            digests = {str(file.relative_to(path)): _digest(file) for file in sorted(path.rglob("*")) if file.is_file()}
            write_atomically(path / MANIFEST, json.dumps(digests, indent=1))
        except Exception as error:  # noqa: BLE001
            self._failed(path, error)
        self._remove_old()

    def close(self) -> None:
        """Finishes the save under way and stops the background threads.

        Raises:
          UserError: the disk is full, unless that was said before.
        """
        try:
            self.finish()
        finally:
            self._background.shutdown()
            for saver in (self._saver, self._optimizer_saver):
                # Each says once more what has failed in its threads.
                with contextlib.suppress(Exception):
                    saver.close()

    def latest(self) -> int | None:
        """Number of the newest complete checkpoint, or None."""
        return max(complete(self.folder), default=None)

    def meta(self, number: int) -> dict[str, Any]:
        """What was saved as `meta`.

        Raises:
          UserError: the checkpoint was written by a version whose optimizer state is laid out otherwise.
        """
        path = self.folder / f"{number:08d}"
        meta = json.loads((path / META).read_text())
        if meta.get("format") != FORMAT:
            raise UserError(f"{path}: written by another version of vlm_jax, which alone can continue from it")
        return meta

    def restore_params(self, number: int, like: Any) -> Any:
        """Parameters of checkpoint `number` with the shapes, dtypes and shardings of `like` (ShapeDtypeStructs)."""
        return _restore(self.folder / f"{number:08d}", "params", like)

    def restore_optimizer(self, number: int, like: Any) -> Any:
        """Optimizer state of checkpoint `number`, in the structure of `like`."""
        leaves, structure = jax.tree.flatten(like)
        restored = _restore(self.folder / f"{number:08d}", "optimizer", {str(i): leaf for i, leaf in enumerate(leaves)})
        return jax.tree.unflatten(structure, [restored[str(i)] for i in range(len(leaves))])

    def verify(self, number: int) -> None:
        """Compares every file of checkpoint `number` with its digest.

        Raises:
          UserError: naming the first damaged or missing file.
        """
        verify(self.folder / f"{number:08d}")

    def _remove_old(self) -> None:
        passing = [n for n in complete(self.folder) if not self.meta(n)["permanent"]]
        newest = max(complete(self.folder), default=-1)
        for number in sorted(passing)[: -self.keep]:
            if number != newest:
                path = self.folder / f"{number:08d}"
                (path / MANIFEST).unlink()  # from here on it does not exist, even if the removal is cut off
                shutil.rmtree(path)

    def _failed(self, path: Path, error: Exception) -> NoReturn:
        """Clears the half-written checkpoint away; a full disk becomes one line, anything else goes on up."""
        shutil.rmtree(path, ignore_errors=True)
        if is_full_disk(error):
            newest = self.latest()
            kept = "nothing was saved before" if newest is None else f"checkpoint {newest} is complete"
            raise UserError(
                f"{self.folder}: no space left on the disk ({kept}); free some and run the same command again"
            ) from error
        raise error


def complete(folder: Path) -> list[int]:
    """Numbers of the checkpoints in `folder` whose manifest was written, in order."""
    names = (entry.parent.name for entry in Path(folder).glob(f"*/{MANIFEST}"))
    return sorted(int(name) for name in names if _NUMBERED.fullmatch(name))


def read_params(
    folder: Path, step: int | None = None, parts: Sequence[str] | None = None
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Reads parameters alone, as NumPy arrays on the host.

    Args:
      folder: a run's `checkpoints/`.
      step: number of the checkpoint; the newest when None.
      parts: which of the outermost dicts to read; those that are there when None.

    Returns:
      The nested dict of parameters, and the checkpoint's meta.

    Raises:
      UserError: there is no such checkpoint, or a file of it is damaged.
    """
    numbers = complete(folder)
    if not numbers or (step is not None and step not in numbers):
        have = ", ".join(map(str, numbers)) or "none"
        wanted = "no complete checkpoint" if step is None else f"no checkpoint {step}"
        raise UserError(f"{folder}: {wanted} (there are: {have})")
    path = Path(folder) / f"{numbers[-1] if step is None else step:08d}"
    verify(path)
    handler = ocp.PyTreeCheckpointer()
    stored = handler.metadata(path.absolute() / "params").item_metadata.tree
    wanted = {part: tree for part, tree in stored.items() if parts is None or part in parts}
    arguments = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
    args = ocp.args.PyTreeRestore(item=wanted, restore_args=arguments, partial_restore=True)
    params = handler.restore(path.absolute() / "params", args=args)
    return params, json.loads((path / META).read_text())


def write_params(folder: Path, number: int, params: Mapping[str, Any]) -> None:
    """Writes one checkpoint of parameters alone, which no training continues from.

    Raises:
      UserError: the disk is full.
    """
    checkpoints = Checkpoints(folder)
    checkpoints.save(number, params, {}, {}, permanent=True)
    checkpoints.close()


def verify(path: Path) -> None:
    """Compares every file of the checkpoint at `path` with its digest (see `Checkpoints.verify`)."""
    digests = read_json(path / MANIFEST)
    if META not in digests or not any(name.startswith("params/") for name in digests):  # a copy that was cut off, say
        raise UserError(
            f"{path / MANIFEST} is damaged; delete the folder {path} to continue from the checkpoint before it"
        )
    for name, digest in digests.items():
        file = path / name
        if not file.is_file() or _digest(file) != digest:
            state = "is damaged" if file.is_file() else "is missing"
            raise UserError(f"{file} {state}; delete the folder {path} to continue from the checkpoint before it")


def _restore(path: Path, part: str, like: Any) -> Any:
    arguments = ocp.checkpoint_utils.construct_restore_args(like)
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        return reader.restore(path.absolute() / part, args=ocp.args.PyTreeRestore(like, restore_args=arguments))


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
