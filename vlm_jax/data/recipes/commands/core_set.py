"""`core-set`: a small part of a pool of records."""

from __future__ import annotations

import argparse
import sys
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from vlm_jax import cli
from vlm_jax.data.conversation import RecordError
from vlm_jax.data.recipes.commands import flags as shared
from vlm_jax.data.recipes.core_set import CoreSet, Rules, Sample, select
from vlm_jax.data.recipes.items import content_key, read_item
from vlm_jax.data.recipes.written import check_out, chosen, write_parts
from vlm_jax.errors import UserError
from vlm_jax.files import read_table

HELP = """\
Selects a core set as SVIT does: the records that hold the most keywords of a list of concepts, so many of each type,
with yes and no in balance. A type is the name of a source, so give one file for each type, or a meta file.

Concepts are a TOML or JSON file: `concept = ["keyword", "two words", ...]`. One of our own comes with the package, and
is the default.

examples:
  python -m vlm_jax.data.recipes core-set --data=meta.json --quota=50000 --min-frequency=20 --out=core.json
  python -m vlm_jax.data.recipes core-set --data=detail.jsonl --data=reasoning.jsonl \\
      --quota=detail=20000,reasoning=60000 --concepts=mine.toml --yes-no=1 --out=core.json
"""

EXAMPLE = Path(__file__).parents[1] / "examples" / "concepts.toml"


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this recipe's flags."""
    from vlm_jax.data.inspection.flags import add_bad_flags, natural

    shared.add_data(parser)
    parser.add_argument(
        "--quota",
        action="append",
        required=True,
        metavar="N|TYPE=N",
        help="records of every type, or of the types that are named (others are left out)",
    )
    parser.add_argument("--concepts", type=Path, default=EXAMPLE, metavar="FILE", help="keywords by concept")
    parser.add_argument(
        "--min-frequency", type=natural, default=1, metavar="N", help="records that a keyword must be in (default: 1)"
    )
    parser.add_argument("--inverse-frequency", action="store_true", help="rare keywords count more")
    parser.add_argument(
        "--yes-no", type=_ratio, default=1.0, metavar="RATIO", help="yes for each no (default: 1), or `any`"
    )
    parser.add_argument(
        "--cover", action="store_true", help="every keyword gets a record first, as far as quotas reach"
    )
    add_bad_flags(parser)
    shared.add_out(parser)


def run(flags: Any) -> int:
    """Writes the core set.

    Raises:
      UserError: data or concepts that cannot be read, too many bad records, or an output that cannot be written.
    """
    from vlm_jax.data.inspection.flags import folder_for
    from vlm_jax.data.quarantine import Quarantine, remove

    check_out(flags.out, flags.overwrite)
    folder_for(flags.quarantine, "--quarantine")
    concepts = _concepts(flags.concepts)
    sources = shared.open_sources(flags)
    remove(flags.quarantine)
    total = sum(len(opened.source) for opened in sources.values())
    quarantine = Quarantine(flags.quarantine, total, flags.max_bad, setting="--max-bad")
    samples, places = _pool(sources, total, quarantine)
    rules = Rules(
        concepts=concepts,
        quota=_quota(flags.quota, sources),
        min_frequency=flags.min_frequency,
        inverse_frequency=flags.inverse_frequency,
        ratio=flags.yes_no,
        cover=flags.cover,
    )
    with cli.progress("Finding keywords", len(samples)) as advance:
        found = select(samples, rules, advance)
    numbers: dict[str, list[int]] = {}
    for number in found.chosen:
        name, own = places[number]
        numbers.setdefault(name, []).append(own)
    parts = [chosen(name, sources[name].source, own, flags.out, sources[name].repeat) for name, own in numbers.items()]
    write_parts(parts, flags.out, overwrite=flags.overwrite)
    _say(found, samples, rules, quarantine)
    sys.stdout.write(f"{flags.out}: written\n")
    return cli.OK


def _concepts(path: Path) -> dict[str, list[str]]:
    table = read_table(path)
    for concept, keywords in table.items():
        if not isinstance(keywords, list) or not all(isinstance(keyword, str) for keyword in keywords):
            raise UserError(f"{path}: {concept}: must be a list of keywords")
    return table


def _pool(sources: dict[str, shared.Opened], total: int, quarantine: Any) -> tuple[list[Sample], list[tuple[str, int]]]:
    """All good records, with the source and number of each."""
    samples, places = [], []
    copies: defaultdict[str, int] = defaultdict(int)
    with cli.progress("Reading", total) as advance:
        for name, opened in sources.items():
            for number in range(len(opened.source)):
                advance()
                try:
                    item = read_item(opened.source, number)
                except RecordError as error:
                    quarantine.add([error])
                    continue
                # Many records of one picture share an id; what they say tells them apart, but for exact copies.
                key = f"{item.id} {name} {content_key(item)}"
                copies[key] += 1
                samples.append(Sample(f"{key} {copies[key]}", name, item.questions()))
                places.append((name, number))
    return samples, places


def _quota(values: list[str], sources: dict[str, Any]) -> dict[str, int]:
    if len(values) == 1 and values[0].isdecimal():
        return dict.fromkeys(sources, int(values[0]))
    return shared.pairs(values, "--quota")


def _ratio(text: str) -> float | None:
    if text == "any":
        return None
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be a number above 0, or `any`, got '{text}'")
    return value


def _say(found: CoreSet, samples: list[Sample], rules: Rules, quarantine: Any) -> None:
    there, taken = Counter(s.type for s in samples), Counter(samples[number].type for number in found.chosen)
    for type_, quota in rules.quota.items():
        sys.stdout.write(f"{type_}: {taken[type_]:,} of {there[type_]:,} records (quota {quota:,})\n")
    keywords = {keyword for concept in rules.concepts.values() for keyword in concept}
    sys.stdout.write(
        f"keywords: {len(found.kept):,} of {len(keywords):,} are in {rules.min_frequency:,} or more records; the core "
        f"set holds {len(found.covered):,} of them\nyes: {found.yes:,}, no: {found.no:,}\n{quarantine.summary()}\n"
    )
