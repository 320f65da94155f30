"""Figures of the report as plain values for the template: curves as polylines, numbers in words.

Geometry only; colours and sizes belong to the stylesheet. Curves live in a 1000 x 1000 square that the page stretches.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

SIDE = 1000.0
MAX_POINTS = 300


@dataclasses.dataclass(frozen=True)
class Curve:
    """One line chart.

    Attributes:
      name: what is drawn, as "loss".
      points: "x,y x,y ..." for an SVG polyline; y grows downwards.
      x_ticks, y_ticks: (place in per cent from the left or the top, label).
      first, last: the first and last value drawn, as labels.
      scale: "linear" or "log".
    """

    name: str
    points: str
    x_ticks: list[tuple[float, str]]
    y_ticks: list[tuple[float, str]]
    first: str
    last: str
    scale: str


@dataclasses.dataclass(frozen=True)
class Metrics:
    """What `metrics.jsonl` holds: the lines of each stage in order of steps, and the number of unreadable lines."""

    stages: dict[str, list[dict[str, Any]]]
    unreadable: int


def read_metrics(path: Path) -> Metrics:
    """Reads a file of JSON lines with at least `stage` and `step`; a missing file holds nothing.

    `validation_mean` of an entry is the `mean` of its `validation`, where it has one.

    A run that was killed and continued writes some steps twice: the later line counts. It may also leave half a line:
    such lines are counted, and the report says so.
    """
    stages: dict[str, dict[int, dict[str, Any]]] = {}
    unreadable = 0
    lines = path.read_text("utf-8", errors="replace").splitlines() if path.exists() else []
    for line in filter(str.strip, lines):
        try:
            entry = json.loads(line)
            stages.setdefault(str(entry["stage"]), {})[int(entry["step"])] = entry
            if isinstance(entry.get("validation"), dict):
                entry["validation_mean"] = entry["validation"].get("mean")
        except (ValueError, TypeError, KeyError, OverflowError):
            unreadable += 1
    ordered = {stage: [steps[step] for step in sorted(steps)] for stage, steps in stages.items()}
    return Metrics(ordered, unreadable)


def curve(name: str, entries: Sequence[Mapping[str, Any]], key: str) -> Curve | None:
    """Draws `key` over `step`, averaged within `MAX_POINTS` bins; None with fewer than two finite values.

    All curves of the same entries have one range of steps, from the first entry to the last, so that they can stand
    below one another. The scale is logarithmic where all values are positive and span more than a factor of 30.
    """
    drawn = [(e["step"], e[key]) for e in entries if is_number(e.get(key))]
    if len(drawn) < 2:
        return None
    bins = np.array_split(np.array(drawn, np.float64), min(MAX_POINTS, len(drawn)))
    steps, values = np.array([chunk.mean(axis=0) for chunk in bins]).T
    log = values.min() > 0 and values.max() > 30 * values.min() and key != "learning_rate"
    y_ticks, place = axis(values, log, intervals=2 if key == "learning_rate" else 4)
    first, last = entries[0]["step"], entries[-1]["step"]
    across = (steps - first) / max(last - first, 1e-9)
    points = " ".join(f"{SIDE * x:.1f},{SIDE * place(y):.1f}" for x, y in zip(across, values, strict=True))
    x_ticks = [(0.0, f"{first:,.0f}"), (100.0, f"{last:,.0f}")]
    scale = "log" if log else "linear"
    return Curve(name, points, x_ticks, y_ticks, number(drawn[0][1]), number(drawn[-1][1]), scale)


def axis(values: np.ndarray, log: bool, intervals: int) -> tuple[list[tuple[float, str]], Callable[[float], float]]:
    """Ticks at round values (place in per cent from the top, label), and the map from a value to its place in [0, 1]
    from the top."""
    from matplotlib import ticker

    low, high = float(values.min()), float(values.max())
    if log:
        ticks = [t for t in ticker.LogLocator(subs=(1, 3), numticks=12).tick_values(low, high) if low <= t <= high]
        bottom, top = math.log(low), math.log(high)
    else:
        if high == low:
            low, high = low - (abs(low) or 1) / 2, high + (abs(high) or 1) / 2
        locator = ticker.MaxNLocator(nbins=intervals, steps=[1, 2, 2.5, 5, 10])
        ticks = [float(tick) for tick in locator.tick_values(min(low, 0.0), high)]
        bottom, top = ticks[0], ticks[-1]

    def place(value: float) -> float:
        at = math.log(value) if log else value
        return 1 - (at - bottom) / (top - bottom)

    return [(100 * place(t), number(t)) for t in ticks], place


def is_number(value: Any) -> bool:
    """Whether it is a finite number (a truth value is none)."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def number(value: float) -> str:
    """A number with three significant digits, without trailing zeros; small and large ones as powers of ten."""
    if value == 0:
        return "0"
    if 1e-3 <= abs(value) < 1e5:
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{float(f'{value:.3g}'):g}"
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{float(mantissa):g}e{int(exponent)}"
