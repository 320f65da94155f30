import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_jax.data.plan.packing import plan_rows
from vlm_jax.data.plan.shape import GOOD_TILES, GOOD_TOKENS, choose_shape

SIZES = st.lists(st.tuples(st.integers(1, 3000), st.integers(0, 9)), min_size=1, max_size=50)


@settings(max_examples=60)
@given(SIZES, st.none() | st.integers(1, 4000), st.none() | st.integers(0, 12), st.booleans())
def test_a_row_holds_every_record_that_it_may(sizes, tokens, tiles, packing):
    array = np.array(sizes)
    shape = choose_shape(array, 2000, tokens, tiles, packing)
    assert shape == choose_shape(array, 2000, tokens, tiles, packing)
    limit = min(tokens or 2000, 2000)
    may = (array[:, 0] <= limit) & (array[:, 1] <= (99 if tiles is None else tiles))
    assert (array[may] <= shape[:2]).all()
    assert tiles in (None, shape.tiles)
    if may.any():
        assert tokens in (None, shape.tokens)
        assert shape.tokens % 128 == 0 or shape.tokens == 2000 or tokens is not None
        assert 0 < shape.token_fill <= 1
        assert 0 <= shape.tile_fill <= 1
    if not packing and may.any() and tokens is None:
        assert shape.tokens - array[may, 0].max() < 128


@pytest.mark.parametrize("tokens", [None, 8192])
def test_a_chosen_row_is_filled_well(tokens):
    rng = np.random.default_rng(0)
    tiles = rng.choice([0, 1, 3, 5, 7, 9, 13], 20_000)
    sizes = np.stack([tiles * 256 + rng.integers(60, 700, len(tiles)), tiles], axis=1)
    shape = choose_shape(sizes, 32_768, tokens)
    assert tokens in (None, shape.tokens)
    rows = plan_rows(sizes, shape.tokens, shape.tiles, np.random.default_rng(1))
    fills = sizes.sum(axis=0) / len(rows) / shape[:2]
    assert (fills >= (GOOD_TOKENS, GOOD_TILES)).all()
    assert np.abs(fills - shape[2:]).max() < 0.02  # as was foretold
    # What one would have taken without looking fills worse.
    assert sizes[:, 1].sum() / len(plan_rows(sizes, shape.tokens, 48, np.random.default_rng(1))) / 48 < GOOD_TILES


def test_rows_of_text_have_no_tile_slots():
    sizes = np.stack([np.arange(1, 500), np.zeros(499, int)], axis=1)
    shape = choose_shape(sizes, 32_768)
    assert (shape.tiles, shape.tile_fill) == (0, 1.0)
    assert shape.token_fill > GOOD_TOKENS
