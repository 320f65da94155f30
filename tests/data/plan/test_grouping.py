import dataclasses
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_jax.config import build
from vlm_jax.data.pipeline import Batches
from vlm_jax.data.plan.grouping import MEGA_BATCH, group
from vlm_jax.data.plan.mixture import MixtureConfig
from vlm_jax.data.sources import MemorySource
from vlm_jax.errors import UserError

CONFIG = MixtureConfig(rows=4, tokens=400, tiles=12, window=24, packing=False, order="group")
SIZES = st.lists(st.tuples(st.integers(1, 2000), st.sampled_from([0, 0, 1, 5])), max_size=300)


@settings(max_examples=100)
@given(sizes=SIZES, rows=st.integers(1, 9), seed=st.integers(0, 3))
def test_every_record_once_in_batches_of_one_modality(sizes, rows, seed):
    sizes = np.array(sizes, int).reshape(-1, 2)
    order, bounds = group(sizes, rows, np.random.default_rng(seed))
    assert sorted(order.tolist()) == list(range(len(sizes)))
    assert bounds[0] == 0
    assert bounds[-1] == len(sizes)
    found = [order[a:b] for a, b in itertools.pairwise(bounds)]
    for batch in found:
        assert 1 <= len(batch) <= rows
        assert len(set((sizes[batch, 1] > 0).tolist())) == 1
    for images in (True, False):  # as few batches as hold them, evenly filled
        counts = [len(batch) for batch in found if (sizes[batch[0], 1] > 0) == images]
        assert len(counts) == -(-int(((sizes[:, 1] > 0) == images).sum()) // rows)
        assert not counts or max(counts) - min(counts) <= 1
    again = group(sizes, rows, np.random.default_rng(seed))
    assert again.order.tolist() == order.tolist()
    assert again.bounds == bounds


def test_lengths_in_a_batch_are_alike():
    rng = np.random.default_rng(0)
    count, rows = 40 * MEGA_BATCH, 16
    sizes = np.stack([rng.integers(50, 2000, count), rng.integers(0, 2, count)], axis=1)

    def spread(order, bounds):
        return np.mean([np.ptp(sizes[order[a:b], 0]) for a, b in itertools.pairwise(bounds)])

    order, bounds = group(sizes, rows, np.random.default_rng(1))
    anyhow = rng.permutation(count)
    assert spread(order, bounds) < 0.05 * spread(anyhow, list(range(0, count + 1, rows)))
    # Neither lengths nor modalities come in order.
    means = np.array([sizes[order[a:b]].mean(axis=0) for a, b in itertools.pairwise(bounds)])
    assert abs(np.corrcoef(np.arange(len(means)), means[:, 0])[0, 1]) < 0.3
    assert abs(np.corrcoef(np.arange(len(means)), means[:, 1])[0, 1]) < 0.3
    other = group(sizes, rows, np.random.default_rng(2))
    assert other.order.tolist() != order.tolist()


@pytest.fixture(scope="module")
def source(conversations):
    """Two records of three have images."""

    def without(conversation):
        turns = [dataclasses.replace(turn, text=turn.text.replace("<image>", "")) for turn in conversation.turns]
        return dataclasses.replace(conversation, images=(), turns=tuple(turns))

    return MemorySource([c if number % 3 else without(c) for number, c in enumerate(conversations)])


@pytest.fixture(scope="module")
def straight(source, preparer):
    numbered = Batches(source, preparer, CONFIG, seed=5)
    return [numbered[number] for number in range(numbered.count(0) + 3)]


def assert_equal(first, second):
    assert first.position == second.position
    for name in first.batch._fields[:-1]:
        np.testing.assert_array_equal(getattr(first.batch, name), getattr(second.batch, name), err_msg=name)


def test_batches_of_a_run(source, preparer, straight):
    numbered = Batches(source, preparer, CONFIG, seed=5)
    count = numbered.count(0)
    assert straight[count - 1].position == (1, 0, 0)
    seen = 0
    kinds = set()
    for _, batch, _ in straight[:count]:
        assert batch.tokens.shape == (4, 400)
        assert batch.patches.shape[:2] == (4, 12)
        assert batch.segments.max() == 1  # one conversation a row
        used = batch.segments[:, 0] > 0
        with_images = (batch.tile_segment > 0).any(axis=1)
        assert len(set(with_images[used].tolist())) == 1
        kinds.add(bool(with_images.any()))
        seen += int(used.sum())
    assert kinds == {True, False}
    assert seen == 60
    planned = np.concatenate([row for window in range(3) for row in numbered.rows(0, window)])
    assert sorted(planned.tolist()) == list(range(60))


def test_any_position_resumes(source, preparer, straight):
    for start in range(len(straight) - 1):
        again = Batches(source, preparer, CONFIG, 5, straight[start].position)
        assert_equal(again[0], straight[start + 1])


def test_hosts_agree(source, preparer, straight):
    for rows in ((0, 2), (1, 3)):
        numbered = Batches(source, preparer, CONFIG, seed=5, rows=rows)
        for number in (0, 3):
            position, batch, _ = numbered[number]
            assert position == straight[number].position
            np.testing.assert_array_equal(batch.tokens, straight[number].batch.tokens[list(rows)])


def test_the_order_is_part_of_what_a_position_means(source, preparer):
    anyhow = dataclasses.replace(CONFIG, order="random")
    digests = {Batches(source, preparer, config, seed=5).digest for config in (CONFIG, anyhow)}
    assert len(digests) == 2
    # As it was written before there was a choice.
    assert "order" not in repr(anyhow)
    assert build(MixtureConfig, {"rows": 1, "packing": False, "order": "group"}).order == "group"


def test_grouping_is_in_place_of_packing():
    with pytest.raises(UserError, match=r"data\.order: 'group' .* set data\.packing to False"):
        MixtureConfig(rows=1, order="group")
    with pytest.raises(UserError, match=r"order: .*'random' or 'group'"):
        build(MixtureConfig, {"rows": 1, "order": "length"})
