"""Mixtures: at most so many records of a source, then all of them in proportion to what is left.

Yi-VL caps every source of its last stage at 50 000 records, so that a few large ones do not drown the others
(arXiv 2403.04652, section on multi-modal training); SVIT swaps one source of LLaVA-1.5's mixture for another (see
`edit.py`).

How this cap relates to `MixtureConfig.cap`: here records are drawn once, and the others are in no epoch of any run that
reads the result. The recipe's field limits an epoch: the next one goes on with the next records of the source, so that
with enough epochs all are seen. With one epoch, both hold equally many records of every source.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from vlm_jax.errors import UserError


def capped(size: int, cap: int, name: str, seed: int) -> np.ndarray:
    """Numbers of the records of a source that are kept, drawn without replacement.

    The draw depends on the source's name and not on other sources. A smaller cap keeps a subset of what a larger one
    keeps.

    Args:
      size: records of the source.
      cap: how many are kept at most; 0 is no limit.
      name: of the source.
      seed: from 0.

    Returns:
      int64 [min(size, cap)], rising.
    """
    if not cap or size <= cap:
        return np.arange(size)
    key = np.frombuffer(hashlib.sha256(name.encode()).digest(), np.uint32).tolist()
    return np.sort(np.random.default_rng([seed, *key]).permutation(size)[:cap])


def proportional(sizes: Mapping[str, int], total: int) -> dict[str, int]:
    """Splits `total` among sources in proportion to their sizes, by largest remainders; equal ones by name.

    Args:
      sizes: records by source.
      total: how many are wanted.

    Raises:
      UserError: `total` is more than there are.
    """
    there = sum(sizes.values())
    if total > there:
        raise UserError(f"--records: {total:,} are wanted, but the capped sources hold {there:,}")
    shares = {name: size * total // max(there, 1) for name, size in sizes.items()}
    left = total - sum(shares.values())
    for name in sorted(sizes, key=lambda name: (-(sizes[name] * total % max(there, 1)), name))[:left]:
        shares[name] += 1
    return shares


def mixture(sizes: Mapping[str, int], *, cap: int = 0, records: int = 0, seed: int = 0) -> dict[str, np.ndarray]:
    """Yi-VL's rule: cap every source, then mix in proportion to the capped sizes.

    Args:
      sizes: records by source.
      cap: of one source at most; 0 is no limit.
      records: of all sources together, split in proportion to the capped sizes; 0 takes all of them.
      seed: of what is drawn.

    Returns:
      By source, numbers of the records that are kept, rising.

    Raises:
      UserError: more records are wanted than the capped sources hold.
    """
    counts = {name: min(size, cap) if cap else size for name, size in sizes.items()}
    if records:
        counts = proportional(counts, records)
    return {
        name: capped(size, counts[name], name, seed) if counts[name] else np.arange(0) for name, size in sizes.items()
    }


def histogram(sizes: Mapping[str, int], kept: Mapping[str, int]) -> str:
    """A table of what a mixture holds: records there were and are by source, share of the whole, and a bar of it.

    Args:
      sizes: records by source before.
      kept: and after.
    """
    total = max(sum(kept.values()), 1)
    width = max(map(len, [*sizes, "source"]))
    rows = [f"{'source':<{width}} {'of':>12} {'kept':>12} {'share':>7}"]
    for name, size in sizes.items():
        share = kept.get(name, 0) / total
        bar = " " + "█" * round(40 * share) if round(40 * share) else ""
        rows.append(f"{name:<{width}} {size:>12,} {kept.get(name, 0):>12,} {100 * share:>5.1f} %{bar}")
    return "\n".join([*rows, f"{'all':<{width}} {sum(sizes.values()):>12,} {sum(kept.values()):>12,}"])
