"""As many yes as no: which questions are answered so, and a selection in which both keep a ratio."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import NamedTuple

_WORD = re.compile(r"[^\W_]+(?:['’][^\W_]+)*")
_ANSWER = re.compile(r"\W*(yes|no)\b\s*([^\w\s]|$)?", re.IGNORECASE)

_ASKS = frozenset(
    {"is", "are", "was", "were", "am", "do", "does", "did", "can", "could", "will", "would", "shall", "should", "has",
     "have", "had", "may", "might", "must", "isn't", "aren't", "doesn't", "don't", "didn't", "can't", "wasn't"}
)  # fmt: skip
"""Words that a question to be answered by yes or no begins with."""

_EXACT = 1e-9  # what sums of ratios may be off


class Ranked(NamedTuple):
    """A record that may be selected.

    Attributes:
      number: in the pool.
      type: that it counts under.
      place: its rank among the records of its type, from 0, the best.
      keywords: that it holds.
      yes, no: how many of its questions are answered so.
    """

    number: int
    type: str
    place: int
    keywords: frozenset[str]
    yes: int
    no: int


def words(text: str) -> list[str]:
    """The words of a text in lower case; what is neither a letter nor a digit separates them, but for apostrophes."""
    return _WORD.findall(text.lower())


def yes_or_no(question: str, answer: str) -> str:
    """'yes' or 'no' if the question is answered so, otherwise ''.

    The answer begins with the word; behind it stands nothing or a punctuation mark, unless the question begins as such
    questions do ("Is ...", "Can ...").
    """
    found = _ANSWER.match(answer)
    if not found:
        return ""
    asks = (words(question) or [""])[0] in _ASKS
    return found[1].lower() if asks or found[2] is not None else ""


def balanced(
    chosen: Sequence[Ranked],
    ranked: Mapping[str, Sequence[Ranked]],
    quota: Mapping[str, int],
    ratio: float,
    *,
    keep_keywords: bool = False,
) -> list[Ranked]:
    """A selection in which yes = ratio * no as nearly as the chosen records allow.

    Records of the majority are dropped, the lowest ranked first, over all types together. Their places are filled, the
    best first, with records of either side in turn while the pool has more of both, and then with those that change
    nothing.

    Args:
      chosen: by rank, within quotas.
      ranked: all records of every type, the best first.
      quota: records of each type at most.
      ratio: of yes to no.
      keep_keywords: nothing is dropped that alone holds one of the keywords of the chosen.

    Returns:
      By type in the order of `quota`, then by rank.
    """
    left, surplus = _thinned(chosen, ratio, keep_keywords)
    there = {entry.number for entry in left}
    room = {type_: most - sum(entry.type == type_ for entry in left) for type_, most in quota.items()}
    spare = sorted((e for t in quota for e in ranked[t] if e.number not in there), key=lambda e: (e.place, e.type))
    more = _in_turn([entry for entry in spare if entry.yes or entry.no], dict(room), surplus, ratio)
    for entry in [*more, *(entry for entry in spare if not entry.yes and not entry.no)]:
        if room[entry.type] > 0:
            room[entry.type] -= 1
            left.append(entry)
    order = list(quota)
    return sorted(left, key=lambda entry: (order.index(entry.type), entry.place))


def _thinned(chosen: Sequence[Ranked], ratio: float, keep_keywords: bool) -> tuple[list[Ranked], float]:
    """What is left of a selection without the lowest ranked of the majority, and by how much yes is too many in it."""
    surplus = sum(_own(entry, ratio) for entry in chosen)
    holders = Counter(keyword for entry in chosen for keyword in entry.keywords)
    left = []
    for entry in sorted(chosen, key=lambda entry: (-entry.place, entry.type)):
        own = _own(entry, ratio)
        needed = keep_keywords and any(holders[keyword] == 1 for keyword in entry.keywords)
        if abs(surplus - own) < abs(surplus) - _EXACT and not needed:
            surplus -= own
            holders.subtract(entry.keywords)
        else:
            left.append(entry)
    return left, surplus


def _in_turn(spare: Sequence[Ranked], room: dict[str, int], surplus: float, ratio: float) -> list[Ranked]:
    """More records, each of the side that is behind, as many as leave the surplus no larger than it is."""
    sides = {side: iter([e for e in spare if _own(e, ratio) * side > 0]) for side in (-1, 1)}
    added: list[Ranked] = []
    fine, now = 0, surplus
    while True:
        entry = next((e for e in sides[-1 if now > -_EXACT else 1] if room[e.type] > 0), None)
        if entry is None:
            return added[:fine]
        room[entry.type] -= 1
        added.append(entry)
        now += _own(entry, ratio)
        if abs(now) <= abs(surplus) + _EXACT:
            fine = len(added)


def _own(entry: Ranked, ratio: float) -> float:
    return entry.yes - ratio * entry.no
