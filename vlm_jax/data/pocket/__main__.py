"""Draws sheets of the pocket data, one PNG a task: `python -m vlm_jax.data.pocket --out=DIR`.

Every picture stands beside what the pocket model sees of it (resized to its tile grid; the thumbnail is left out), both
three times enlarged, with the conversation underneath. With --examples there are a few instead that differ in kind of
question and number of tiles, with the gold answer: the pictures of docs/pocket_data.md are made by

    python -m vlm_jax.data.pocket --examples --out=docs/images
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path

from vlm_jax import cli
from vlm_jax.data.pocket.material import load_material
from vlm_jax.data.pocket.records import make_record
from vlm_jax.data.pocket.scene import SPLITS, TASKS
from vlm_jax.data.pocket.sheets import contact_sheet, example_sheet, varied

EXAMPLES = 8
"""Pictures on a sheet of examples."""


def main(arguments: list[str]) -> None:
    """Writes `DIR/<task>.png` for each task, or `DIR/pocket_<task>.png` with examples."""
    parser = cli.ArgumentParser(prog="python -m vlm_jax.data.pocket", description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder for the sheets")
    parser.add_argument("--split", choices=SPLITS, help="default: train, for examples test")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--pictures", type=int, help="pictures on a sheet (default: 24, of examples 8)")
    parser.add_argument("--examples", action="store_true", help="a few that differ, with question and gold answer")
    flags = parser.parse_args(arguments)
    split = flags.split or ("test" if flags.examples else "train")
    count = flags.pictures or (EXAMPLES if flags.examples else 24)
    material = load_material(flags.seed)[split]
    flags.out.mkdir(parents=True, exist_ok=True)
    for task in TASKS:
        make = partial(make_record, flags.seed, split, task, material=material)
        if flags.examples:
            path, sheet = flags.out / f"pocket_{task}.png", example_sheet(varied(make, count))
        else:
            path, sheet = flags.out / f"{task}.png", contact_sheet(list(map(make, range(count))))
        sheet.save(path, optimize=True)
        sys.stdout.write(f"{path}\n")


if __name__ == "__main__":
    cli.run(main)
