"""The packing that a check foretells."""

from collections import Counter

import numpy as np
import pytest

from vlm_jax.data.formats.meta import open_meta
from vlm_jax.data.inspection.expected import expected_packing
from vlm_jax.data.inspection.survey import survey
from vlm_jax.data.pipeline import Batches
from vlm_jax.data.plan.index import BAD
from vlm_jax.data.plan.mixture import MixtureConfig


def test_the_expected_packing_is_a_runs(bad, preparer):
    """The same records are bad, rows have the same shape, and as many records are in them."""
    source = open_meta(bad[0])
    index = survey(source, preparer).index
    for tokens, tiles in ((None, None), (None, 9), (250, None), (300, 8)):
        packing, left = expected_packing(source, index, preparer.max_tokens, tokens, tiles)
        batches = Batches(source, preparer, MixtureConfig(rows=2, tokens=tokens, tiles=tiles), 0, index=index)
        assert (packing.tokens, packing.tiles) == tuple(batches.shape[:2])
        assert set(left.bad) == set(np.flatnonzero(batches.index.task_ids == BAD).tolist())
        assert len(batches.bad) == len(left.bad)
        rows = batches.rows(0, 0)
        assert Counter(np.concatenate(packing.rows).tolist()) == Counter(np.concatenate(rows).tolist())
        used = index.sizes[np.concatenate(packing.rows)].sum(axis=0)
        assert packing.token_fill == pytest.approx(used[0] / (len(packing.rows) * packing.tokens))
        assert packing.tile_fill == pytest.approx(used[1] / (len(packing.rows) * packing.tiles))
