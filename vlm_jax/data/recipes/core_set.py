"""SVIT's core set: the records that speak of the most concepts, by type, with as many yes as no.

1. Concepts, each with dozens of keywords, are a file that somebody writes (SVIT's authors had GPT-4 write theirs, after
   the abilities that MME and MMBench measure, and did not publish them; `examples/concepts.toml` is one of our own).
2. A keyword that fewer than `min_frequency` records of the pool hold is deleted.
3. A record's score is the number of distinct keywords, of those kept, in its questions and answers; with
   `inverse_frequency` each counts log(N / number of records that hold it).
4. Of each type the records of the highest scores are taken until its quota is full; of equal ones that of the lower id.
5. Questions answered by yes or no are balanced: records of the majority are dropped, the lowest ranked first, and
   their places filled with the next of the same type that keep the balance (`balance.py`).

Source: SVIT, arXiv 2307.04087, section on core-set selection. It gives no thresholds, so all of them are arguments.
Nothing here depends on the order of the pool.
"""

from __future__ import annotations

import dataclasses
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import NamedTuple

from vlm_jax.data.recipes.balance import Ranked, balanced, words, yes_or_no
from vlm_jax.errors import UserError


class Sample(NamedTuple):
    """A record of the pool.

    Attributes:
      id: unique in the pool.
      type: with a quota of its own, as conversation, detail, reasoning.
      questions: every question with its answer.
    """

    id: str
    type: str
    questions: Sequence[tuple[str, str]]


@dataclasses.dataclass(frozen=True)
class Rules:
    """How a core set is selected.

    Attributes:
      concepts: keywords by concept, of one or more words each; upper and lower case are the same.
      quota: records by type; types that are not named are left out.
      min_frequency: a keyword must be in so many records of the pool.
      inverse_frequency: rare keywords count more.
      ratio: of yes to no; None leaves them as they come.
      cover: before ranks count, every keyword gets its best record, the rarest keyword first, as far as quotas
        reach; balancing drops none that is alone with a keyword.
    """

    concepts: Mapping[str, Sequence[str]]
    quota: Mapping[str, int]
    min_frequency: int = 1
    inverse_frequency: bool = False
    ratio: float | None = 1.0
    cover: bool = False


@dataclasses.dataclass(frozen=True)
class CoreSet:
    """What was selected.

    Attributes:
      chosen: numbers of the samples in the pool, by type and then by rank.
      kept: keywords that were kept, with the number of records of the pool that hold each.
      covered: those that a chosen record holds.
      yes, no: questions of the chosen records that are answered so.
    """

    chosen: list[int]
    kept: dict[str, int]
    covered: set[str]
    yes: int
    no: int


class _Finder:
    """Finds keywords in texts, as whole words in a row."""

    def __init__(self, keywords: Iterable[str]) -> None:
        self._by_words = {tuple(words(keyword)): keyword for keyword in keywords}
        self._lengths = sorted({len(key) for key in self._by_words})

    def __call__(self, text: str) -> set[str]:
        there = words(text)
        known = self._by_words
        return {
            known[key]
            for length in self._lengths
            for key in zip(*(there[first:] for first in range(length)), strict=False)
            if key in known
        }


def select(samples: Sequence[Sample], rules: Rules, advance: Callable[[], object] = lambda: None) -> CoreSet:
    """Selects a core set.

    Args:
      samples: the pool.
      rules: how.
      advance: is called for every sample whose keywords were found, which is most of the work.

    Raises:
      UserError: a concept without keywords, a quota of a type that the pool lacks, or ids that are not unique.
    """
    _check(samples, rules)
    find = _Finder(keyword for keywords in rules.concepts.values() for keyword in keywords)
    found = []
    for sample in samples:
        found.append(set[str]().union(*(find(text) for pair in sample.questions for text in pair)))
        advance()
    frequency = Counter(keyword for keywords in found for keyword in keywords)
    kept = {keyword: count for keyword, count in sorted(frequency.items()) if count >= rules.min_frequency}
    ranked = _ranked(samples, found, kept, rules)
    chosen = [
        entry
        for type_, quota in rules.quota.items()
        for entry in _fill(ranked[type_], quota, kept if rules.cover else {})
    ]
    if rules.ratio is not None:
        chosen = balanced(chosen, ranked, rules.quota, rules.ratio, keep_keywords=rules.cover)
    return CoreSet(
        chosen=[entry.number for entry in chosen],
        kept=kept,
        covered={keyword for entry in chosen for keyword in entry.keywords},
        yes=sum(entry.yes for entry in chosen),
        no=sum(entry.no for entry in chosen),
    )


def _check(samples: Sequence[Sample], rules: Rules) -> None:
    for concept, keywords in rules.concepts.items():
        if not keywords or not all(words(keyword) for keyword in keywords):
            raise UserError(f"concept '{concept}': must have keywords of at least one letter or digit each")
    types = {sample.type for sample in samples}
    if missing := sorted(set(rules.quota) - types):
        known = ", ".join(sorted(types)) or "none"
        raise UserError(f"quota: no record of type '{missing[0]}' in the pool; types are {known}")
    if rules.ratio is not None and not (math.isfinite(rules.ratio) and rules.ratio > 0):
        raise UserError(f"ratio: must be a number above 0, got {rules.ratio}")
    if len({sample.id for sample in samples}) < len(samples):
        twice = Counter(sample.id for sample in samples).most_common(1)[0][0]
        raise UserError(f"id '{twice}': several records of the pool have it; ids decide between equal scores")


def _ranked(
    samples: Sequence[Sample], found: Sequence[set[str]], kept: Mapping[str, int], rules: Rules
) -> dict[str, list[Ranked]]:
    """Samples of every type that has a quota, the best first."""
    by_type: dict[str, list[tuple[float, str, Ranked]]] = {type_: [] for type_ in rules.quota}
    for number, sample in enumerate(samples):
        if sample.type not in by_type:
            continue
        keywords = frozenset(found[number] & kept.keys())
        score = float(len(keywords))
        if rules.inverse_frequency:  # in a fixed order, as sums of floats depend on it
            score = math.fsum(math.log(len(samples) / kept[keyword]) for keyword in keywords)
        answers = Counter(yes_or_no(*pair) for pair in sample.questions)
        entry = Ranked(number, sample.type, 0, keywords, answers["yes"], answers["no"])
        by_type[sample.type].append((-score, sample.id, entry))
    return {
        type_: [entry._replace(place=place) for place, (*_, entry) in enumerate(sorted(entries, key=itemgetter(0, 1)))]
        for type_, entries in by_type.items()
    }


def _fill(ranked: Sequence[Ranked], quota: int, cover: Mapping[str, int]) -> list[Ranked]:
    """The first `quota` of a type; before that, for every keyword in `cover` the best record that holds it."""
    chosen: set[int] = set()
    if cover:
        best: dict[str, int] = {}
        for place, entry in enumerate(ranked):
            for keyword in entry.keywords:
                best.setdefault(keyword, place)
        covered: set[str] = set()
        for keyword in sorted(best, key=lambda keyword: (cover[keyword], keyword)):
            if keyword not in covered and len(chosen) < quota:
                chosen.add(best[keyword])
                covered |= ranked[best[keyword]].keywords
    for place in range(len(ranked)):
        if len(chosen) >= quota:
            break
        chosen.add(place)
    return [ranked[place] for place in sorted(chosen)]
