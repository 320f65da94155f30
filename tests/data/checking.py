"""What tests of `vlm_jax.data.check` share: flags of small work, and its results."""

import json

from vlm_jax.data import check


def quarantined(path):
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def small(meta):
    """Flags that make the work of the tests small."""
    return "--data", meta, "--tile-size", 56, "--max-tiles", 4, "--workers", 0


def survey_preparer(meta):
    from vlm_jax.data.inspection.flags import prepare

    return prepare(check._parse([str(part) for part in small(meta)])).preparer
