"""`python -m vlm_jax.data.show`: a page that shows what a model will see of a data set."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

from vlm_jax import cli
from vlm_jax.errors import UserError

_HELP = """\
Writes DIR/index.html, one page that opens offline, about a data set as a model will see it: some records with their
pictures cut into tiles and their tokens coloured by what is learned from them, and how the rows of a batch were packed.

examples:
  python -m vlm_jax.data.show --data=meta.json --out=look
  python -m vlm_jax.data.show --data=meta.json --out=look --model=runs/mine --samples=40 --seed=1
"""


def main(argv: Sequence[str]) -> int:
    """Runs the command with these arguments.

    Raises:
      UserError: data, a model or a flag that cannot be used, or a page that cannot be written.
    """
    flags = _parse(argv)

    from vlm_jax.data.inspection import flags as shared
    from vlm_jax.data.inspection.expected import expected_packing
    from vlm_jax.data.inspection.show_page import render
    from vlm_jax.data.plan.index import load_index

    prepared = shared.prepare(flags)
    source = prepared.source
    preparer = dataclasses.replace(prepared.preparer, loss_reduction=flags.loss_reduction)
    index = load_index(source, preparer)
    packing, index = expected_packing(source, index, preparer.max_tokens, flags.tokens, flags.tiles, flags.seed)
    with cli.progress("Preparing samples", flags.samples) as advance:
        page = render(
            source,
            preparer,
            index,
            packing,
            lengths=prepared.lengths,
            samples=flags.samples,
            rows=flags.rows,
            seed=flags.seed,
            advance=advance,
        )
    _write(flags.out / "index.html", page)
    return cli.OK


def _write(path: Path, page: str) -> None:
    from vlm_jax.files import write_atomically

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, page)
    except OSError as error:
        raise UserError(f"--out: {path}: cannot be written: {error.strerror or error}") from None
    sys.stdout.write(f"{path}\n")


def _parse(argv: Sequence[str]) -> Any:
    from vlm_jax.data.inspection import flags as shared
    from vlm_jax.data.prepare import LossReduction

    parser = cli.ArgumentParser(prog="python -m vlm_jax.data.show", description=_HELP)
    shared.add_flags(parser)
    parser.add_argument("--out", required=True, type=Path, metavar="DIR", help="folder for the page; made if need be")
    parser.add_argument(
        "--samples", type=shared.positive, default=16, metavar="N", help="records that are shown (default: %(default)s)"
    )
    parser.add_argument(
        "--rows",
        type=shared.positive,
        default=16,
        metavar="N",
        help="packed rows that are shown (default: %(default)s)",
    )
    parser.add_argument(
        "--loss-reduction",
        choices=get_args(LossReduction),
        default="token",
        help="what a learned token weighs (default: %(default)s)",
    )
    parser.add_argument(
        "--seed", type=shared.natural, default=0, metavar="N", help="of the choice (default: %(default)s)"
    )
    return parser.parse_args(argv)


if __name__ == "__main__":
    cli.run(main)
