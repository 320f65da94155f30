"""`python -m vlm_jax.data.check`: looks at every record of a data set before a run does, and can copy the good ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm_jax import cli

_HELP = """\
Looks at every record of a data set, before a run does: its size for the model, how the records will be packed, and what
is wrong with which.

Bad records are listed in quarantine.jsonl. A list that an earlier check left is replaced, or removed if nothing is bad
any more. The exit code is 0 if the data can be trained on, and 2 if more than --max-bad of all records are bad or a
source has no good one.

examples:
  python -m vlm_jax.data.check --data=meta.json
  python -m vlm_jax.data.check --data=meta.json --model=models/InternVL2-1B --deep
  python -m vlm_jax.data.check --data=meta.json --fix=clean.json
"""


def main(argv: Sequence[str]) -> int:
    """Runs the command with these arguments.

    Raises:
      UserError: data, a model or a flag that cannot be used; or more bad records than may be.
    """
    flags = _parse(argv)

    from vlm_jax.data.inspection import clean_copy
    from vlm_jax.data.inspection import flags as shared
    from vlm_jax.data.inspection.check_report import Report
    from vlm_jax.data.inspection.expected import expected_packing
    from vlm_jax.data.inspection.survey import empty_parts, survey
    from vlm_jax.data.quarantine import Quarantine, remove

    shared.folder_for(flags.quarantine, "--quarantine")
    if flags.fix is not None:
        clean_copy.check_target(flags.fix, flags.data)
    prepared = shared.prepare(flags)
    source = prepared.source
    if flags.fix is not None:
        clean_copy.check_source(source)
    remove(flags.quarantine)
    with cli.progress(f"Checking {source.name}", len(source)) as advance:
        found = survey(source, prepared.preparer, deep=flags.deep, workers=flags.workers, advance=advance)
    packing, index = expected_packing(source, found.index, prepared.preparer.max_tokens, flags.tokens, flags.tiles)
    found = dataclasses.replace(found, index=index)
    quarantine = Quarantine(flags.quarantine, len(source), flags.max_bad, source=source.name, setting="--max-bad")
    bad = found.index.bad
    quarantine.write(bad[number] for number in sorted(bad))
    report = Report(found, packing, lengths=prepared.lengths, deep=flags.deep)
    report.show()
    if bad:
        report.say(f"Listed in {flags.quarantine}, one row a record.")
    if flags.fix is not None:
        for line in clean_copy.write(source, bad, flags.fix, flags.data):
            report.say(line)
    for part in empty_parts(source, bad):
        raise quarantine.nothing_left(part)
    quarantine.refuse_too_many()
    return cli.OK


def _parse(argv: Sequence[str]) -> Any:
    from vlm_jax.data.inspection import flags as shared

    parser = cli.ArgumentParser(prog="python -m vlm_jax.data.check", description=_HELP)
    shared.add_flags(parser)
    parser.add_argument("--deep", action="store_true", help="decode every image, not only its header")
    parser.add_argument(
        "--fix", type=Path, metavar="OUT.json", help="write a clean copy: a meta file beside new .jsonl"
    )
    shared.add_bad_flags(parser)
    parser.add_argument("--workers", type=shared.natural, metavar="N", help="processes (default: one for every core)")
    return parser.parse_args(argv)


if __name__ == "__main__":
    cli.run(main)
