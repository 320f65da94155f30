"""`python -m vlm_jax.convert`: model folders from one layout to another."""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from vlm_jax import cli
from vlm_jax.errors import UserError

_HELP = """\
Writes a trained or downloaded model as a folder that other programs read.

  --source is a training workdir (what `vlm_jax.main --workdir` wrote) or a model folder of InternVL in either layout.
  --layout=hf is that of `transformers` (InternVLForConditionalGeneration): weights, config, tokenizer, chat template
  and image processor, ready for AutoModelForImageTextToText.from_pretrained. --layout=internvl is that of InternVL's
  own code (InternVLChatModel), without the code.

examples:
  python -m vlm_jax.convert --source=runs/pocket --target=pocket-hf --layout=hf
  python -m vlm_jax.convert --source=InternVL2-1B --target=InternVL2-1B-hf --layout=hf
  python -m vlm_jax.convert --source=runs/pocket --step=400 --target=pocket-400 --layout=hf --dtype=bfloat16

It ends with a table: parameters, bytes and a checksum of what was written, read back from the disk. The checksum
depends on the parameters alone, so that folders of equal weights have equal checksums.
"""


def main(argv: list[str]) -> int:
    """Runs the command with these arguments."""
    parser = cli.ArgumentParser(prog="python -m vlm_jax.convert", description=_HELP)
    parser.add_argument("--source", required=True, metavar="DIR", help="training workdir or model folder")
    parser.add_argument("--step", type=int, metavar="N", help="checkpoint of a workdir (default: the newest)")
    parser.add_argument("--target", required=True, metavar="DIR", help="folder to write; must not exist")
    parser.add_argument("--layout", required=True, choices=["hf", "internvl"], help="layout of the target")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], help="of the written weights (default: as they are in the source)"
    )
    flags = parser.parse_args(argv)

    from vlm_jax.convert import folders

    params, system, tokenizer = _read(Path(flags.source), flags.step)
    target = Path(flags.target)
    dtype = flags.dtype or str(_flat(params)["decoder/embedding"].dtype)
    folders.write_folder(target, params, system, tokenizer, dtype, flags.layout)
    parts = summarise(_with_progress(folders.stream_params(target, system.model), len(_flat(params))))
    wanted = folders.DTYPES[dtype]
    if parts != summarise((path, np.asarray(array).astype(wanted)) for path, array in _flat(params).items()):
        raise RuntimeError(f"{target}: what was read back differs from what was written")
    sys.stdout.write(_table(parts) + f"\nwritten to {target}\n")
    return cli.OK


def summarise(params: Iterable[tuple[str, np.ndarray]]) -> dict[str, tuple[int, int, str]]:
    """Parameters, bytes and checksum (SHA-256, 16 digits) of each part of a model, and of all under `total`.

    Args:
      params: (path, array), in any order; held one at a time.
    """
    rows: dict[str, list[Any]] = {}
    for path, array in params:
        digest = hashlib.sha256(f"{path} {array.dtype} {array.shape}".encode())
        digest.update(np.ascontiguousarray(array).view(np.uint8).data)
        for name in (path.split("/", 1)[0], "total"):
            row = rows.setdefault(name, [0, 0, []])
            row[0] += array.size
            row[1] += array.nbytes
            row[2].append(digest.hexdigest())
    checksums = {name: hashlib.sha256("".join(sorted(row[2])).encode()).hexdigest()[:16] for name, row in rows.items()}
    order = sorted(rows, key=lambda name: (name == "total", name))
    return {name: (rows[name][0], rows[name][1], checksums[name]) for name in order}


def _read(source: Path, step: int | None) -> tuple[dict[str, Any], Any, Any]:
    from vlm_jax.convert import folders

    if not source.is_dir():
        raise UserError(f"--source: there is no folder {source}")
    if folders.is_workdir(source):
        return folders.read_workdir(source, step)
    if step is not None:
        raise UserError(f"--step: {source} is not a training workdir, it has no checkpoints to choose from")
    return folders.read_folder(source)


def _flat(params: dict[str, Any]) -> dict[str, np.ndarray]:
    from vlm_jax import globs

    return globs.flatten(params)


def _with_progress(items: Iterable[Any], total: int) -> Iterable[Any]:
    with cli.progress("Reading back", total) as advance:
        for item in items:
            yield item
            advance()


def _table(parts: dict[str, tuple[int, int, str]]) -> str:
    lines = [f"{'part':<12}{'parameters':>16}{'bytes':>18}  checksum"]
    lines += [f"{name:<12}{count:>16,}{size:>18,}  {checksum}" for name, (count, size, checksum) in parts.items()]
    return "\n".join(lines)


if __name__ == "__main__":
    cli.run(main)
