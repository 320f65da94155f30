"""Timing of things that are compared: in turns, in one run, in wall and in processor time."""

from __future__ import annotations

import gc
import os
import platform
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import PIL


def machine() -> str:
    """One line: cores, load, versions."""
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{os.cpu_count()} cores ({platform.machine()}), load {load}; Python {platform.python_version()}, "
        f"NumPy {np.__version__}, Pillow {PIL.__version__}"
    )


def in_turns(ways: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[tuple[float, float]]]:
    """Calls every way `repeats` times, one after another in each round; (wall, processor) seconds of every call."""
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for way in ways.values():
        way()
    for number in range(repeats):
        order = list(ways.items())
        for name, way in order if number % 2 else order[::-1]:
            gc.collect()
            wall, processor = time.perf_counter(), time.process_time()
            result = way()
            found[name].append((time.perf_counter() - wall, time.process_time() - processor))
            del result
    return found


def ratios(ours: list[tuple[float, float]], other: list[tuple[float, float]]) -> tuple[float, float, float, float]:
    """Ours to the other: smallest wall times, median of the rounds' wall times; the same of processor times."""
    found = []
    for kind in (0, 1):
        a, b = [times[kind] for times in ours], [times[kind] for times in other]
        found += [min(a) / min(b), statistics.median(x / y for x, y in zip(a, b, strict=True))]
    return found[0], found[1], found[2], found[3]


def resident(process: int | str = "self") -> float:
    """Mebibytes of memory that a process holds (Linux)."""
    pages = int(Path(f"/proc/{process}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def processor_seconds(process: int | str) -> float:
    """Processor time of a process so far (Linux)."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
