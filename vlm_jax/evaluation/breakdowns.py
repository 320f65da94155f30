"""Where a model is good and where it is not: scores by tiles, by size, by kind of question, and common mistakes.

Plain values for the template, from the rows of an `EvaluationResult`; nothing here knows a task by name.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax.evaluation.metrics import METRICS
from vlm_jax.evaluation.runner import best_constant

Row = Mapping[str, Any]

KIND_SHARE, KIND_LEAST = 8, 8
"""A kind of question has at least an eighth of the task's questions, and at least eight."""

OTHERS = "others"
"""What the questions are called that are of no kind."""

LONG_LABEL = 44
"""Characters; where a kind's name is longer, the words that all kinds of its task begin with are left out."""

MISTAKES, MISTAKE_LEAST, MISTAKE_LENGTH = 3, 3, 24
"""How many of the most common mistakes of a task are listed, how often they must occur at least, and the longest
answers (characters) that are listed."""

_NUMBER = re.compile(r"\d+(?:[.,]\d+)*")
_TAG = re.compile(r"</?[a-z]{1,12}>")


def breakdown(rows: Sequence[Row], bucket: Callable[[Row], Any], label: Callable[[Any], str]) -> dict[str, Any] | None:
    """Mean score by task (rows) and bucket (columns); None where fewer than two buckets occur.

    Args:
      rows: rows of an `EvaluationResult`.
      bucket: a sortable bucket of a row, or None to leave the row out.
      label: how a bucket is called.

    Returns:
      `columns` (labels) and `lines`: (task, [(mean score, n) or None for an empty cell]).
    """
    cells: dict[tuple[str, Any], list[float]] = {}
    for row in rows:
        if (place := bucket(row)) is not None:
            cells.setdefault((row["task"], place), []).append(row["score"])
    buckets = sorted({place for _, place in cells})
    if len(buckets) < 2:
        return None
    tasks = list(dict.fromkeys(row["task"] for row in rows))

    def cell(task: str, place: Any) -> tuple[float, int] | None:
        scores = cells.get((task, place))
        return (float(np.mean(scores)), len(scores)) if scores else None

    lines = [(task, [cell(task, place) for place in buckets]) for task in tasks]
    return {"columns": [label(place) for place in buckets], "lines": lines}


def by_tiles(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Score by number of tiles (thumbnails not counted)."""
    return breakdown(rows, lambda row: row["tiles"], lambda tiles: f"{tiles} tile{'s' if tiles != 1 else ''}")


def by_size(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Score by the longer side of the first picture, in powers of two."""

    def bucket(row: Row) -> int | None:
        return None if row["width"] is None else math.ceil(math.log2(max(row["width"], row["height"])))

    return breakdown(rows, bucket, lambda power: f"≤ {2**power:,} px")


def by_kind(rows: Sequence[Row], metric: str) -> list[dict[str, Any]]:
    """Scores of one task by kind of question, the largest first, what is of no kind last.

    Args:
      rows: of one task.
      metric: its metric, a name in `METRICS`.

    Returns:
      For each kind `label`, `n`, `value` (mean score) and `constant`: the score of the best answer
      that is the same for all questions of this kind, taken from their own gold answers. It is what a model can reach
      that reads the question but not the picture.
    """
    groups: dict[str, list[Row]] = {}
    for row, label in zip(rows, kinds([row["question"] for row in rows]), strict=True):
        groups.setdefault(label, []).append(row)
    found = []
    for label, group in groups.items():
        constant = best_constant(METRICS[metric], [answer for row in group for answer in row["answers"]])
        scores = [row["score"] for row in group]
        found.append(
            {
                "label": label,
                "n": len(group),
                "value": float(np.mean(scores)),
                "constant": float(np.mean([METRICS[metric](constant, row["answers"]) for row in group])),
            }
        )
    return sorted(found, key=lambda kind: (kind["label"].startswith(OTHERS), -kind["n"], kind["label"]))


def kinds(questions: Sequence[str]) -> list[str]:
    """Names the kind of every question of a task: how it begins, up to where what it asks for differs.

    Numbers count as equal ("#") and tags as absent. Beginning with all questions together, a group is split by the next
    word wherever that makes a kind that is large enough (`KIND_SHARE`, `KIND_LEAST`); what is not, stays together.
    """
    words = [tuple(_NUMBER.sub("#", _TAG.sub(" ", question)).split()) for question in questions]
    least = max(KIND_LEAST, len(words) / KIND_SHARE)
    groups = _split(list(range(len(words))), words, least)
    prefixes = [_common([words[i] for i in group]) for group, _ in groups]
    shared = len(_common(prefixes))
    if len(groups) < 2 or max(len(" ".join(prefix)) for prefix in prefixes) <= LONG_LABEL:
        shared = 0
    labels = [""] * len(words)
    for (group, rest), prefix in zip(groups, prefixes, strict=True):
        name = " ".join(prefix[shared:])
        more = any(len(words[i]) > len(prefix) for i in group)
        label = f"{'… ' if shared and name else ''}{name}{' …' if more and name else ''}"
        for i in group:
            labels[i] = (f"{OTHERS}: {label}" if label else OTHERS) if rest and more else label or "…"
    return labels


def mistakes(rows: Sequence[Row]) -> list[tuple[str, str, int]]:
    """The most common mistakes of one task: gold answer, what was said, how often."""
    pairs = collections.Counter(
        (row["answers"][0].strip(), row["prediction"].strip()) for row in rows if row["score"] == 0
    )
    short = [(*pair, n) for pair, n in pairs.items() if n >= MISTAKE_LEAST and max(map(len, pair)) <= MISTAKE_LENGTH]
    return sorted(short, key=lambda mistake: (-mistake[2], mistake))[:MISTAKES]


def _split(group: list[int], words: Sequence[tuple[str, ...]], least: float) -> list[tuple[list[int], bool]]:
    """The kinds that a group (numbers of questions) is made of, and whether each is what others left over."""
    depth = len(_common([words[i] for i in group]))
    children: dict[tuple[str, ...], list[int]] = {}
    for i in group:
        children.setdefault(words[i][depth : depth + 1], []).append(i)
    large = [child for child in children.values() if len(child) >= least]
    if len(children) < 2 or not large:
        return [(group, False)]
    left = sorted(i for child in children.values() if len(child) < least for i in child)
    return [kind for child in large for kind in _split(child, words, least)] + ([(left, True)] if left else [])


def _common(sequences: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """The longest beginning that all have."""
    first, last = min(sequences, default=()), max(sequences, default=())
    return first[: next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), len(first))]
