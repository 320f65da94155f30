"""What a model consists of, in a table: parameters, bytes and checksums by part."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Any

import numpy as np

Parts = dict[str, tuple[int, int, str]]
"""Part of a model, or `total` -> parameters, bytes, checksum."""


def summarise(params: Iterable[tuple[str, Any]], dtype: np.dtype | None = None) -> Parts:
    """Parameters, bytes and checksum (SHA-256, 16 digits) of each part of a model, and of all under `total`.

    Args:
      params: (path, array or lazy array), in any order; held one at a time.
      dtype: what they count as; as they are when None.
    """
    rows: dict[str, list[Any]] = {}
    for path, lazy in params:
        array = np.ascontiguousarray(np.asarray(lazy).astype(dtype or lazy.dtype, copy=False))
        digest = hashlib.sha256(f"{path} {array.dtype} {array.shape}".encode())
        digest.update(array.view(np.uint8).data)
        for name in (path.split("/", 1)[0], "total"):
            row = rows.setdefault(name, [0, 0, []])
            row[0] += array.size
            row[1] += array.nbytes
            row[2].append(digest.hexdigest())
    checksums = {name: hashlib.sha256("".join(sorted(row[2])).encode()).hexdigest()[:16] for name, row in rows.items()}
    order = sorted(rows, key=lambda name: (name == "total", name))
    return {name: (rows[name][0], rows[name][1], checksums[name]) for name in order}


def table(parts: Parts) -> str:
    """For people."""
    lines = [f"{'part':<12}{'parameters':>16}{'bytes':>18}  checksum"]
    lines += [f"{name:<12}{count:>16,}{size:>18,}  {checksum}" for name, (count, size, checksum) in parts.items()]
    return "\n".join(lines)
