"""Where the time of a run went: its stages on one axis of wall-clock time, and throughput along it."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from vlm_jax.cli import duration
from vlm_jax.evaluation.charts import MAX_POINTS, SIDE, axis, is_number

TICK_SECONDS = (
    1,
    2,
    5,
    10,
    20,
    30,
    *(60 * m for m in (1, 2, 5, 10, 20, 30)),
    *(3600 * h for h in (1, 2, 4, 6, 12, 24)),
)


@dataclasses.dataclass(frozen=True)
class Span:
    """A stretch of time; `stage` is the number of the stage, None for what is no stage. Places in per cent."""

    name: str
    seconds: float
    left: float
    width: float
    stage: int | None


@dataclasses.dataclass(frozen=True)
class Line:
    """One quantity over time: an SVG path "M x y H x V y ..." with a gap between stages; `mean` is weighted by time."""

    name: str
    path: str
    mean: float


@dataclasses.dataclass(frozen=True)
class Chart:
    """Lines that share an axis; `y_ticks` are (place in per cent from the top, label), `shares` are per cents."""

    name: str
    lines: list[Line]
    y_ticks: list[tuple[float, str]]
    shares: bool = False


@dataclasses.dataclass(frozen=True)
class Timeline:
    """A run on its time axis; `ticks` are (place in per cent, label). There are no charts where no times are known."""

    spans: list[Span]
    ticks: list[tuple[float, str]]
    charts: list[Chart]


def timeline(report: Mapping[str, Any], entries: Mapping[str, Sequence[Mapping[str, Any]]]) -> Timeline:
    """Lays out a run.

    Args:
      report: `wall_seconds` and `stages` (`report.REPORT_KEYS`).
      entries: of each stage, lines of `metrics.jsonl`, in order. `seconds`, the time since the run began, says where
        the stage was; without it stages are put one after another.
    """
    wall = max(float(report["wall_seconds"]), 1e-9)
    places = _places(report["stages"], entries)
    spans, at = [], 0.0
    for number, (name, (begin, end)) in enumerate(places.items()):
        if begin - at > 0.002 * wall:
            spans.append((("before: data, start" if not spans else "between stages"), at, begin, None))
        spans.append((name, begin, end, number))
        at = end
    if wall - at > 0.002 * wall:
        spans.append(("after: evaluation, export" if spans else "all", at, wall, None))
    drawn = [Span(name, b - a, 100 * a / wall, 100 * (b - a) / wall, stage) for name, a, b, stage in spans]
    charts = [_throughput(entries, places, wall), _useful(entries, places, wall)]
    return Timeline(drawn, _ticks(wall), [chart for chart in charts if chart is not None])


def _places(
    stages: Mapping[str, Mapping[str, Any]], entries: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, tuple[float, float]]:
    """Stage -> when it began and ended, in seconds since the run began."""
    places, at = {}, 0.0
    for name, figures in stages.items():
        end = _times(entries.get(name, ()))[-1:]
        took = float(figures.get("seconds", 0.0)) + _asking(entries.get(name, ())[:-1])
        begin = max(at, end[0] - took) if end else at
        at = max(begin, end[0]) if end else begin + took
        places[name] = (begin, at)
    return places


def _asking(entries: Sequence[Mapping[str, Any]]) -> float:
    """Seconds in which validation questions were asked after these lines; the seconds of a stage do not count them."""
    validations = [e["validation"] for e in entries if isinstance(e.get("validation"), Mapping)]
    return sum(float(v["seconds"]) for v in validations if is_number(v.get("seconds")))


def _times(entries: Sequence[Mapping[str, Any]]) -> list[float]:
    return [float(e["seconds"]) for e in entries if is_number(e.get("seconds"))]


def _throughput(entries: Mapping[str, Any], places: Mapping[str, tuple[float, float]], wall: float) -> Chart | None:
    lines = _steps(entries, places, "tokens_per_second")
    if not lines:
        return None
    y_ticks, place = axis(np.concatenate([values for _, values in lines]), log=False, intervals=3)
    return Chart("tokens / s", [_line("tokens / s", lines, wall, place)], y_ticks)


def _useful(entries: Mapping[str, Any], places: Mapping[str, tuple[float, float]], wall: float) -> Chart | None:
    named = {"tokens": _steps(entries, places, "useful_tokens"), "tile slots": _steps(entries, places, "useful_tiles")}
    drawn = [_line(name, lines, wall, lambda value: 1 - value) for name, lines in named.items() if lines]
    ticks = [(0.0, "100 %"), (50.0, "50 %"), (100.0, "0 %")]
    return Chart("useful share of a batch", drawn, ticks, shares=True) if drawn else None


def _steps(
    entries: Mapping[str, Sequence[Mapping[str, Any]]], places: Mapping[str, tuple[float, float]], key: str
) -> list[tuple[np.ndarray, np.ndarray]]:
    """For each stage the borders of stretches of time (n + 1) and the mean of `key` in each (n), at most `MAX_POINTS`
    of them in the whole run."""
    known = {}
    for name, (begin, _) in places.items():
        rising, at = [], begin
        for e in entries.get(name, ()):
            if is_number(e.get("seconds")) and is_number(e.get(key)) and e["seconds"] > at:
                at = float(e["seconds"])
                rising.append((at, float(e[key])))
        if rising:
            known[name] = (begin, np.array(rising, np.float64))
    every = max(1, math.ceil(sum(len(pairs) for _, pairs in known.values()) / MAX_POINTS))
    found = []
    for begin, pairs in known.values():
        took = np.diff(pairs[:, 0], prepend=begin)
        firsts = np.arange(0, len(pairs), every)
        seconds = np.add.reduceat(took, firsts)
        means = np.add.reduceat(took * pairs[:, 1], firsts) / seconds
        found.append((np.concatenate([[begin], begin + np.cumsum(seconds)]), means))
    return found


def _line(name: str, lines: Sequence[tuple[np.ndarray, np.ndarray]], wall: float, place: Any) -> Line:
    path, amount, time = [], 0.0, 0.0
    for borders, values in lines:
        amount += float((np.diff(borders) * values).sum())
        time += float(borders[-1] - borders[0])
        xs = SIDE * borders / wall
        path.append(f"M{xs[0]:.1f} {SIDE * place(values[0]):.1f}")
        path += [f"V{SIDE * place(value):.1f}H{x:.1f}" for x, value in zip(xs[1:], values, strict=True)]
    return Line(name, "".join(path), amount / time)


def _ticks(wall: float) -> list[tuple[float, str]]:
    step = next((seconds for seconds in TICK_SECONDS if wall / seconds <= 7), 86400 * math.ceil(wall / 86400 / 7))
    return [
        (100 * step * i / wall, duration(step * i).removesuffix(" 0 s").removesuffix(" 0 min") if i else "0")
        for i in range(int(wall / step) + 1)
    ]
