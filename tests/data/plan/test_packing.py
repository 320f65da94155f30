import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_jax.batch import BatchShape, empty_batch
from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.plan.packing import pack_row, plan_rows


@settings(max_examples=200)
@given(
    sizes=st.lists(st.tuples(st.integers(1, 40), st.integers(0, 6)), max_size=60),
    seed=st.integers(0, 1000),
    open_rows=st.sampled_from([1, 3, 1024]),
)
def test_every_record_once_and_no_row_overfull(sizes, seed, open_rows):
    array = np.array(sizes, np.int32).reshape(-1, 2)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("vlm_jax.data.plan.packing._OPEN_ROWS", open_rows)
        rows = plan_rows(array, 40, 6, np.random.default_rng(seed))
        again = plan_rows(array, 40, 6, np.random.default_rng(seed))
    assert sorted(int(record) for row in rows for record in row) == list(range(len(sizes)))
    assert [row.tolist() for row in rows] == [row.tolist() for row in again]
    for row in rows:
        assert len(row)
        assert (array[row].sum(axis=0) <= (40, 6)).all()
    if open_rows == 1024 and len(rows) > 1:
        # Best fit opens a row only when no other has room, so no two rows could be one.
        totals = np.array([array[row].sum(axis=0) for row in rows])
        for i in range(len(rows)):
            for j in range(i):
                assert ((totals[i] + totals[j]) > (40, 6)).any()


def test_rows_are_well_filled():
    rng = np.random.default_rng(0)
    tiles = rng.choice([0, 1, 2, 3, 5, 7], 20_000)
    sizes = np.stack([tiles * 16 + rng.integers(20, 150, len(tiles)), tiles], axis=1)
    rows = plan_rows(sizes, 1024, 40, np.random.default_rng(1))
    least = sizes[:, 0].sum() / 1024
    assert least / len(rows) > 0.95
    assert [len(row) for row in rows] != [len(row) for row in plan_rows(sizes, 1024, 40, np.random.default_rng(2))]


def test_branches_are_packed_with_their_positions(preparer, png):
    turns = (
        Turn("user", "<image>\nHow?"),
        Turn("assistant", "So."),
        Turn("user", "Why?"),
        Turn("assistant", "Because."),
    )
    example = preparer(Conversation(turns, (png(28, 28),), "x", independent=True))
    length = len(example.tokens)
    batch = empty_batch(BatchShape(rows=1, tokens=2 * length, tiles=2, patches=4, patch_values=588))
    pack_row([example, example], batch, 0, preparer.tokens_per_tile)
    assert example.branches.max() == 2
    for part in (batch.branches[0, :length], batch.branches[0, length:]):
        np.testing.assert_array_equal(part, example.branches)
    for part in (batch.positions[0, :length], batch.positions[0, length:]):
        np.testing.assert_array_equal(part, example.positions)


@pytest.mark.parametrize("size", [(41, 0), (1, 7)])
def test_a_record_larger_than_a_row_is_an_error(size):
    with pytest.raises(ValueError, match="larger than a row"):
        plan_rows(np.array([(1, 1), size]), 40, 6, np.random.default_rng(0))


def test_a_packed_row(preparer, conversations):
    examples = [preparer(conversations[i]) for i in (1, 0, 2)]  # one image, none, two
    n = preparer.tokens_per_tile
    lengths, tiles = [len(e.tokens) for e in examples], [len(e.patches) for e in examples]
    assert tiles[1] == 0
    assert min(tiles[0], tiles[2]) > 0
    batch = empty_batch(BatchShape(rows=2, tokens=sum(lengths) + 5, tiles=sum(tiles) + 1, patches=4, patch_values=588))
    pack_row(examples, batch, 1, n)

    assert all(
        not np.any(field[0] + (name == "splice")) for name, field in zip(batch._fields, batch[:-1], strict=False)
    )
    token = tile = 0
    for segment, example in enumerate(examples, start=1):
        here = slice(token, token + len(example.tokens))
        np.testing.assert_array_equal(batch.tokens[1, here], example.tokens)
        np.testing.assert_array_equal(batch.loss_weights[1, here], example.loss_weights)
        np.testing.assert_array_equal(batch.positions[1, here], np.arange(len(example.tokens)))
        assert not batch.branches[1, here].any()
        assert (batch.segments[1, here] == segment).all()
        splice = batch.splice[1, here]
        assert splice[splice >= 0].tolist() == list(range(tile * n, (tile + len(example.patches)) * n))
        np.testing.assert_array_equal(splice >= 0, example.tokens == preparer.tokenizer.token_id("<IMG_CONTEXT>"))
        there = slice(tile, tile + len(example.patches))
        np.testing.assert_array_equal(batch.patches[1, there], example.patches)
        assert (batch.tile_segment[1, there] == segment).all()
        np.testing.assert_array_equal(batch.tile_image[1, there], example.tile_image)
        np.testing.assert_array_equal(batch.tile_slot[1, there], example.tile_slot)
        assert (batch.tile_grid[1, there] == 2).all()
        token, tile = here.stop, there.stop
    assert not batch.segments[1, token:].any()
    assert (batch.splice[1, token:] == -1).all()
    assert not batch.tile_grid[1, tile:].any()
    with pytest.raises(ValueError, match="too small"):
        pack_row(examples * 2, batch, 0, n)
