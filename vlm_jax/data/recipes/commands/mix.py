"""`mix`: caps every source, mixes them in proportion to what is left, and shows a histogram."""

from __future__ import annotations

import argparse
import sys
from typing import Any

from vlm_jax import cli
from vlm_jax.data.recipes.commands import flags as shared
from vlm_jax.data.recipes.mix import histogram, mixture
from vlm_jax.data.recipes.written import check_out, chosen, write_parts

HELP = """\
Caps every source at so many records, drawn without replacement by the seed, and mixes the sources in proportion to what
is left of them, as Yi-VL does. The histogram says what the mixture holds.

`cap` in a recipe's `stages[i].data` is another thing: it limits an epoch, and the next epoch goes on with other
records. What is left out here is in no epoch.

example:
  python -m vlm_jax.data.recipes mix --data=meta.json --data=extra=more.jsonl --cap=50000 --out=mixed.json
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this recipe's flags."""
    from vlm_jax.data.inspection.flags import natural

    shared.add_data(parser)
    parser.add_argument(
        "--cap", type=natural, default=0, metavar="N", help="records of a source at most (default: no limit)"
    )
    parser.add_argument(
        "--records",
        type=natural,
        default=0,
        metavar="N",
        help="of all sources together (default: all that is left)",
    )
    shared.add_seed(parser, "what is drawn")
    shared.add_out(parser)


def run(flags: Any) -> int:
    """Writes the mixture.

    Raises:
      UserError: data that cannot be read, or an output that cannot be written.
    """
    check_out(flags.out, flags.overwrite)
    sources = shared.open_sources(flags)
    sizes = {name: len(opened.source) for name, opened in sources.items()}
    kept = mixture(sizes, cap=flags.cap, records=flags.records, seed=flags.seed)
    write_mixture(sources, kept, flags)
    sys.stdout.write(histogram(sizes, {name: len(numbers) for name, numbers in kept.items()}) + "\n")
    sys.stdout.write(f"{flags.out}: written\n")
    return cli.OK


def write_mixture(sources: dict[str, shared.Opened], kept: dict[str, Any], flags: Any) -> None:
    """Writes the kept records of every source, with a progress bar.

    Raises:
      UserError: as `write_parts`.
    """
    total = sum(len(numbers) for numbers in kept.values())
    with cli.progress("Writing", total) as advance:

        def counted(numbers: Any) -> Any:
            for number in numbers.tolist():
                yield number
                advance()

        parts = [
            chosen(name, sources[name].source, counted(numbers), flags.out, sources[name].repeat)
            for name, numbers in kept.items()
            if len(numbers)
        ]
        write_parts(parts, flags.out, overwrite=flags.overwrite)
