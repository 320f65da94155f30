"""Prepares data once, as shuffled ArrayRecord files: `python -m vlm_jax.data.build --data=PATH --out=DIR`.

PATH is whatever `data.formats.open` knows: a meta file, records in JSON, Parquet, ... DIR becomes a TFDS data set with
the pictures inside, byte for byte (but PPM as PNG), which spares training a search for millions of files:

    python -m vlm_jax.data.build --data=meta.json --test=held_out.jsonl --out=prepared/my_set/1.0.0
    python -m vlm_jax.main --config=... --config.data.type=tfds --config.data.directory=prepared/my_set/1.0.0

Records that cannot be read are left out, counted, and listed in a file. Which frames of a video are shown is decided
here once and for all (the middles of equal intervals).
"""

from __future__ import annotations

import sys
from pathlib import Path

from vlm_jax import cli


def main(arguments: list[str]) -> None:
    """Writes the data set."""
    flags = _parser().parse_args(arguments)
    from vlm_jax.data.formats.open import open_data
    from vlm_jax.data.formats.shards import data_set_name, write_shards
    from vlm_jax.data.inspection.flags import folder_for
    from vlm_jax.data.quarantine import Quarantine, remove

    listed = flags.quarantine
    folder_for(listed, "--quarantine")
    data_set_name(flags.out)
    given = {"train": flags.data, "validation": flags.validation, "test": flags.test}
    splits = {split: open_data(path, split=split, root=flags.root) for split, path in given.items() if path}
    total = sum(len(source) for source in splits.values())
    remove(listed)
    quarantine = Quarantine(listed, total, flags.max_bad, source=str(flags.data), setting="--max-bad")
    with cli.progress("Reading", total) as advance:
        built = write_shards(
            splits,
            flags.out,
            seed=flags.seed,
            shards=flags.shards,
            overwrite=flags.overwrite,
            bad=lambda split, error: quarantine.add([error]),
            advance=lambda split, records: advance(records),
        )
    for split, done in built.items():
        size = f"{done.bytes / 1e6:,.1f} MB in {done.shards} file(s)"
        sys.stdout.write(f"{split}: {done.records:,} records, {size}\n")
    listing = f", listed in {listed}" if len(quarantine) else ""
    sys.stdout.write(f"{quarantine.summary()}{listing}\n{flags.out}: written\n")


def _parser() -> cli.ArgumentParser:
    from vlm_jax.data.inspection.flags import add_bad_flags

    parser = cli.ArgumentParser(prog="python -m vlm_jax.data.build", description=__doc__)
    parser.add_argument("--data", required=True, metavar="PATH", help="what becomes the split `train`")
    parser.add_argument("--validation", metavar="PATH", help="what becomes the split `validation`")
    parser.add_argument("--test", metavar="PATH", help="what becomes the split `test`")
    parser.add_argument("--root", metavar="DIR", help="folder of the pictures that a file of records names")
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder to write, as SETS/my_set/1.0.0")
    parser.add_argument("--overwrite", action="store_true", help="replace the folder if it is there")
    parser.add_argument("--shards", type=int, metavar="N", help="files of a split (default: one for every 256 MiB)")
    parser.add_argument("--seed", type=int, default=0, metavar="N", help="of the order (default: 0)")
    add_bad_flags(parser)
    return parser


if __name__ == "__main__":
    cli.run(main)
