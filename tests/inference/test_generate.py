import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests import tiny
from vlm_jax.batch import TEXT, BatchShape, empty_batch
from vlm_jax.inference.generate import GREEDY, Sampling, bucket, generate, keep_top_p
from vlm_jax.models.layers import Compute
from vlm_jax.models.vlm import VLM

NEVER = -1
NETWORK = VLM(tiny.system().model, Compute())


def padded(rows: int, tokens: int, tiles: int):
    """The conversations of `tiny` in a batch with more rows, tokens and tile slots than they need."""
    model = tiny.model().batch(tiny.conversations())
    batch = empty_batch(BatchShape(rows, tokens, tiles, model.patches.shape[2], model.patches.shape[3]))
    for ours, given in zip(batch[:-1], model[:-1], strict=True):
        ours[tuple(slice(size) for size in given.shape)] = given
    return batch


def run(batch, limits, stop=NEVER, sampling=GREEDY):
    return generate(NETWORK, tiny.params(), batch, np.asarray(limits), stop, sampling)


@pytest.fixture(scope="module")
def longest():
    return tiny.model().batch(tiny.conversations()).tokens.shape[1]


@pytest.fixture(scope="module")
def greedy(longest):
    return run(padded(4, longest + 13, 6), [12, 12, 12, 1])


def test_greedy_equals_full_recomputation(greedy, longest):
    """Every token again from the whole sequence, without a cache."""
    batch = padded(3, longest + 13, 6)
    lengths = (batch.segments > 0).sum(axis=1)
    rows = np.arange(3)
    for step in range(12):
        logits = np.asarray(tiny.model().logits(batch))[rows, lengths + step - 1]
        chosen = logits.argmax(axis=-1)
        assert [row[step] for row in greedy[:3]] == chosen.tolist()
        batch.tokens[rows, lengths + step] = chosen
        batch.positions[rows, lengths + step] = lengths + step
        batch.segments[rows, lengths + step] = 1
        batch.splice[rows, lengths + step] = TEXT
    assert len({token for row in greedy for token in row}) > 6, "a model that repeats itself proves little"


def test_padding_changes_nothing(greedy, longest):
    assert greedy[3] == []
    assert run(padded(4, longest + 40, 8), [12, 12, 12, 1]) == greedy


def test_rows_stop_at_the_stop_token_and_at_their_limits(greedy, longest):
    stop = greedy[0][5]
    stopped = run(padded(4, longest + 13, 6), [12, 7, 1, 1], stop)
    for row, (full, limit) in enumerate(zip(greedy[:3], [12, 7, 1], strict=True)):
        end = full.index(stop) if stop in full[:limit] else limit
        assert stopped[row] == full[:end]


def test_sampling_follows_the_seed(greedy, longest):
    def draw(seed, **kwargs):
        return run(padded(4, longest + 13, 6), [12] * 4, sampling=Sampling(seed=seed, **kwargs))

    assert draw(1, temperature=1.0) == draw(1, temperature=1.0)
    assert draw(1, temperature=1.0) != draw(2, temperature=1.0)
    assert draw(1, temperature=1.0)[:3] != greedy[:3]
    assert draw(1, temperature=1.0, top_p=1e-6)[:3] == greedy[:3]
    assert draw(1, temperature=1e-4)[:3] == greedy[:3]


def test_top_p_keeps_the_fewest_that_reach_it():
    logits = jnp.log(jnp.array([[0.1, 0.5, 0.15, 0.25], [0.97, 0.01, 0.01, 0.01]]))
    kept = [np.isfinite(keep_top_p(logits, p)).tolist() for p in (0.5, 0.51, 0.8, 1.0, 0.0)]
    assert [rows[0] for rows in kept] == [
        [False, True, False, False],
        [False, True, False, True],
        [False, True, True, True],
        [True] * 4,
        [False, True, False, False],
    ]
    assert kept[2][1] == [True, False, False, False]


def test_buckets():
    sizes = [bucket(n, 16) for n in range(1, 400)]
    assert sorted(set(sizes)) == [16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
    assert all(size >= n and (size <= 16 or size <= 1.5 * n) for n, size in enumerate(sizes, start=1))


def test_a_second_batch_of_the_same_size_compiles_nothing(longest):
    from vlm_jax.inference import generate as module

    run(padded(4, longest + 13, 6), [5] * 4)
    before = module._prefill._cache_size(), module._decode._cache_size()
    run(padded(4, longest + 13, 6), [9, 3, 1, 2], stop=7)
    assert (module._prefill._cache_size(), module._decode._cache_size()) == before
    assert jax.default_backend() == "cpu"
