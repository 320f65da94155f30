import dataclasses
import itertools
import pickle
from collections import Counter

import numpy as np
import pytest

from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.feed import batches
from vlm_jax.data.pipeline import START, Batches, Position
from vlm_jax.data.plan.index import load_index
from vlm_jax.data.plan.mixture import MixtureConfig, epoch_records, task_weights
from vlm_jax.data.sources import ManySources, MemorySource
from vlm_jax.data.text.templates import TEMPLATES
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.errors import UserError

CONFIG = MixtureConfig(rows=3, tokens=400, tiles=12, window=24)


@pytest.fixture(scope="module")
def source(conversations):
    return MemorySource(conversations)


def take(count, *args, **kwargs):
    iterator = batches(*args, **kwargs)
    taken = list(itertools.islice(iterator, count))
    iterator.close()
    return taken


def assert_equal(first, second):
    assert [loaded.position for loaded in first] == [loaded.position for loaded in second]
    assert [list(map(str, loaded.bad)) for loaded in first] == [list(map(str, loaded.bad)) for loaded in second]
    for (_, a, _), (_, b, _) in zip(first, second, strict=True):
        for name in a._fields[:-1]:
            np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)
            assert getattr(a, name).dtype == getattr(b, name).dtype


@pytest.fixture(scope="module")
def straight(source, preparer):
    """Enough batches for a bit more than one epoch."""
    count = Batches(source, preparer, CONFIG, seed=5).count(0)
    taken = take(count + 4, source, preparer, CONFIG, 5)
    assert taken[count - 1][0] == Position(1, 0, 0)
    return taken


def test_shapes_never_change(straight):
    for _, batch, _ in straight:
        assert batch.tokens.shape == (3, 400)
        assert batch.patches.shape == (3, 12, 4, 588)
        assert batch.patches.dtype == np.uint8
        assert batch.segments[0].any()


def test_an_epoch_holds_every_record_once(straight, preparer, conversations):
    seen = Counter()
    for position, batch, _ in straight:
        for row in range(3):
            for segment in range(1, batch.segments[row].max() + 1):
                seen[preparer.tokenizer.decode(batch.tokens[row][batch.segments[row] == segment])] += 1
        if position.epoch:
            break
    assert seen == Counter(preparer.tokenizer.decode(preparer(c).tokens) for c in conversations)


def test_any_position_resumes_bit_for_bit(straight, source, preparer):
    for start in (1, 4, len(straight) - 5, len(straight) - 2):
        again = take(len(straight) - start, source, preparer, CONFIG, 5, straight[start - 1][0])
        assert_equal(again, straight[start:])


@pytest.mark.parametrize("workers", [1, 3])
def test_workers_change_nothing(straight, source, preparer, workers):
    # From the middle of a window over its end and the epoch's into the next.
    start = len(straight) - 12
    again = take(12, source, preparer, CONFIG, 5, straight[start - 1].position, workers=workers)
    assert len({loaded.position[:2] for loaded in again}) >= 3
    assert {loaded.position.epoch for loaded in again} == {0, 1}
    assert_equal(again, straight[start:])
    assert type(again[0][1].tokens) is np.ndarray
    assert again[0][1].tokens.flags.owndata
    assert again[0][0] == Position(*again[0][0])


def test_seed_and_stage_change_the_order(straight, source, preparer):
    orders = {straight[0][1].tokens.tobytes()}
    orders.add(take(1, source, preparer, CONFIG, 6)[0][1].tokens.tobytes())
    orders.add(take(1, source, preparer, CONFIG, 5, stage=1)[0][1].tokens.tobytes())
    orders.add(take(1, source, preparer, CONFIG, 5, Position(1, 0, 0))[0][1].tokens.tobytes())
    assert len(orders) == 4


def test_rows_are_dealt_evenly(source, preparer):
    numbered = Batches(source, preparer, CONFIG, seed=5)
    for window in range(3):
        rows = len(numbered.rows(0, window))
        used = [
            int((batch.segments > 0).any(axis=1).sum())
            for batch in (numbered[i].batch for i in range(numbered.count(0)))
        ]
        assert max(used) - min(used) <= 1 or rows <= 3
    assert sum(used) == sum(len(numbered.rows(0, window)) for window in range(3))


def test_positions_where_no_batch_begins_are_refused(source, preparer):
    with pytest.raises(ValueError, match="no batch begins"):
        Batches(source, preparer, CONFIG, 5, Position(0, 0, 1))[0]
    with pytest.raises(ValueError, match="has 3 windows"):
        Batches(source, preparer, CONFIG, 5, Position(0, 3, 0))[0]


def test_copies_for_processes_are_equal(source, preparer):
    numbered = Batches(source, preparer, CONFIG, seed=5)
    numbered[2]
    assert_equal([pickle.loads(pickle.dumps(numbered))[7]], [numbered[7]])


def test_weights_are_kept_over_epochs(source, preparer):
    index = load_index(source, preparer)
    config = dataclasses.replace(CONFIG, weights={"a": 0.3, "b": 2.0})
    weights = task_weights(index, config)
    is_b = index.task_ids == index.tasks.index("b")
    seen = np.zeros(60, int)
    for epoch in range(10):
        records = epoch_records(index, weights, (5, 0), epoch)
        counts = np.bincount(records, minlength=60)
        assert (counts[is_b] == 2).all()
        assert counts[~is_b].sum() == 12
        assert counts[~is_b].max() == 1
        seen += counts
    assert (seen[~is_b] == 3).all()
    first, again, other = (epoch_records(index, weights, (5, 0), epoch).tolist() for epoch in (0, 0, 1))
    assert first == again != other


def test_tasks_without_a_weight_are_left_out(source, preparer):
    config = dataclasses.replace(CONFIG, weights={"b": 0.05})  # one record of twenty in every epoch
    numbered = Batches(source, preparer, config, seed=5)
    seen = [int(numbered.rows(epoch, 0)[0][0]) for epoch in range(20)]
    assert sorted(seen) == list(range(2, 60, 3))
    assert [numbered[i][0] for i in range(2)] == [Position(1, 0, 0), Position(2, 0, 0)]


def test_epochs_without_records_are_passed_over(source, preparer):
    config = dataclasses.replace(CONFIG, weights={"b": 0.02})
    numbered = Batches(source, preparer, config, seed=5)
    epochs = [epoch for epoch in range(10) if numbered.count(epoch)]
    assert 0 < len(epochs) < 5
    assert [numbered[i][0].epoch for i in range(len(epochs) - 1)] == epochs[1:]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"weights": {"c": 1.0}}, "^weights: no task c in the data, there are a, b"),
        ({"weights": {"a": 0.0}}, "every weight is 0"),
        ({"weights": {"a": 1e-9}}, "an epoch would hold 4e-08 records on average"),
        ({"tiles": 0, "weights": {"b": 1.0}}, "no record of positive weight is left"),
        ({"tokens": 9}, r"^memory: none of its 60 record\(s\) can be used; the first: .*:1: does not fit a row: .* 9 "),
    ],
)
def test_mixtures_that_do_not_fit(source, preparer, change, message):
    with pytest.raises(UserError, match=message):
        Batches(source, preparer, dataclasses.replace(CONFIG, **change), seed=5)
    for field, value in {"rows": 0, "tokens": 0, "tiles": -1, "window": 0, "cap": -1}.items():
        with pytest.raises(UserError, match=rf"data\.{field}: must be at least"):
            MixtureConfig(**{**dict(rows=1, tokens=1, tiles=1), field: value})
    with pytest.raises(UserError, match=r"data\.epoch_records"):
        MixtureConfig(rows=1, tokens=1, tiles=1, epoch_records=5)
    with pytest.raises(UserError, match=r"data\.weights\.a"):
        MixtureConfig(rows=1, tokens=1, tiles=1, weights={"a": -1.0})


def test_records_of_tasks_left_out_may_be_larger_than_a_row(conversations, preparer):
    long = dataclasses.replace(conversations[0], task="long", id="z", turns=(Turn("user", "a b " * 300),))
    tight = dataclasses.replace(preparer, max_tokens=CONFIG.tokens)
    source = MemorySource([*conversations, long])
    assert Batches(source, tight, dataclasses.replace(CONFIG, weights={"a": 1.0}), seed=5).count(0)
    numbered = Batches(source, tight, CONFIG, seed=5)
    assert [(error.place, error.reason) for error in numbered.bad] == [("memory:61", "too long")]
    planned = np.concatenate([records for window in range(3) for records in numbered.rows(0, window)])
    assert sorted(planned.tolist()) == list(range(60))


@pytest.fixture(scope="module")
def captions(preparer):
    """To whose format records without an image are bad: every second one of task a, and none of b."""
    tokenizer = Tokenizer.train(["What is 1 times 1? Why?"] * 5, 300, TEMPLATES["vicuna_v1"])
    return dataclasses.replace(preparer, tokenizer=tokenizer, template=TEMPLATES["plain"])


@pytest.mark.parametrize(("weights", "bad"), [({}, 20), ({"a": 1.0}, 20), ({"b": 1.0}, 0), ({"a": 0.0, "b": 1.0}, 0)])
def test_what_is_wrong_with_records_that_a_stage_does_not_use_is_none_of_its_business(
    conversations, captions, weights, bad, tmp_path
):
    class Here(MemorySource):
        folder = tmp_path

        def fingerprint(self):
            return ""

    for _ in "measured", "read":
        numbered = Batches(Here(conversations), captions, dataclasses.replace(CONFIG, weights=weights), seed=5)
        assert [(error.reason, error.task) for error in numbered.bad] == [("turns", "a")] * bad
    assert len(list(tmp_path.iterdir())) == 1


def test_a_source_of_which_nothing_is_left_matters_to_the_stages_that_use_it(conversations, captions):
    none, some = (MemorySource([c for c in conversations if bool(c.images) == seen]) for seen in (False, True))
    instruct = MemorySource([dataclasses.replace(c, task="instruct") for c in none.conversations], "instruct")
    source = ManySources((instruct, some), "both")
    assert Batches(source, captions, dataclasses.replace(CONFIG, weights={"a": 1.0, "b": 1.0}), seed=5).bad == ()
    for weights in ({}, {"a": 1.0, "instruct": 1.0}):
        with pytest.raises(UserError, match=r"instruct: none of its 20 record\(s\) can be used"):
            Batches(source, captions, dataclasses.replace(CONFIG, weights=weights), seed=5)


def test_records_longer_than_a_row_are_cut_where_that_is_asked_for(conversations, preparer):
    config = dataclasses.replace(CONFIG, tokens=118, too_long="truncate")
    source = MemorySource(conversations)
    index = load_index(source, preparer)
    assert 0 < (index.sizes[:, 0] > 118).sum() < 60
    numbered = Batches(source, preparer, config, seed=5, index=index)
    rows = [records for window in range(3) for records in numbered.rows(0, window)]
    assert sorted(np.concatenate(rows).tolist()) == list(range(60))
    seen = Counter()
    for number in range(numbered.count(0)):
        batch = numbered[number][1]
        for row in range(3):
            for segment in range(1, batch.segments[row].max() + 1):
                here = batch.segments[row] == segment
                assert batch.loss_weights[row][here].any()
                seen[batch.tokens[row][here].tobytes()] += 1
    assert seen == Counter(preparer(c).tokens[:118].tobytes() for c in conversations)
    strict = Batches(source, preparer, dataclasses.replace(config, too_long="error"), seed=5, index=index)
    assert {error.place for error in strict.bad} == {f"memory:{n + 1}" for n in np.flatnonzero(index.sizes[:, 0] > 118)}
    shorter = Batches(source, preparer, dataclasses.replace(config, tokens=80), seed=5, index=index)
    assert 0 < len(shorter.bad) < 60
    for error in shorter.bad:
        assert int(error.detail.split(" when it is cut")[0].rpartition("(")[2]) > 80


def test_what_is_drawn_is_a_function_of_the_place(conversations, preparer):
    marked = [dataclasses.replace(c, augment=c.task == "a") for c in conversations]
    weights = {"a": 2.0, "b": 1.0}
    config = dataclasses.replace(CONFIG, weights=weights)
    numbered = Batches(MemorySource(marked), preparer, config, seed=5)
    count = numbered.count(0)
    straight = [numbered[number] for number in range(count + 3)]
    assert_equal(
        take(4, MemorySource(marked), preparer, config, 5, straight[count - 2][0], workers=1), straight[count - 1 :]
    )
    plain = Batches(MemorySource(conversations), preparer, config, seed=5)

    seen = {}  # bytes of a tile without losses -> with the losses of each of its turns
    for number in range(count):
        clean, drawn = plain[number][1], straight[number][1]
        for name in clean._fields[:-1]:
            assert name == "patches" or (getattr(clean, name) == getattr(drawn, name)).all()
        for before, after in zip(clean.patches.reshape(-1, 4 * 588), drawn.patches.reshape(-1, 4 * 588), strict=True):
            if before.any():
                seen.setdefault(before.tobytes(), []).append(after.tobytes())
    tiles = {task: set() for task in "ab"}
    for conversation in conversations:
        for tile in preparer(conversation).patches:
            tiles[conversation.task].add(tile.tobytes())
    assert seen.keys() == tiles["a"] | tiles["b"]
    for tile, turns in seen.items():
        if tile in tiles["a"]:
            assert tile not in turns
            assert len(turns) == 2
        else:
            assert turns == [tile]
    # Of the two turns of a tile most differ: one quality in 26 is equal.
    assert np.mean([turns[0] != turns[1] for tile, turns in seen.items() if tile in tiles["a"]]) > 0.8
    alone = MemorySource([max(marked, key=lambda c: c.augment * preparer.measure(c).tiles)])
    config = dataclasses.replace(CONFIG, rows=1)
    numbered = [Batches(alone, preparer, config, seed, stage=stage) for seed, stage in ((5, 0), (5, 0), (6, 0), (5, 1))]
    pixels = [batches[number][1].patches.tobytes() for batches in numbered for number in range(3)]  # three epochs each
    assert pixels[:3] == pixels[3:6]
    assert len(set(pixels)) == 9


@pytest.mark.parametrize("workers", [0, 1])
def test_an_image_damaged_behind_its_header_leaves_a_hole(preparer, conversations, png, workers):
    sound = Conversation((Turn("user", "?"), Turn("assistant", "!")), (png(30, 30),), "r9", "a")
    record = dataclasses.replace(sound, images=(png(30, 30)[:-400],))
    config = dataclasses.replace(CONFIG, rows=1, window=100)
    (whole,) = take(1, MemorySource([*conversations[:4], sound, *conversations[5:9]]), preparer, config, 5)
    (found,) = take(
        1, MemorySource([*conversations[:4], record, *conversations[5:9]]), preparer, config, 5, workers=workers
    )
    assert whole.bad == ()
    ((error,), batch) = found.bad, found.batch
    assert (error.place, error.reason) == ("record r9", "image")
    assert "image 0: cannot read this image" in error.detail
    assert "truncated" in error.detail
    (hole,) = {int(segment) for segment in whole.batch.segments[0]} - {int(segment) for segment in batch.segments[0]}
    here, there = whole.batch.segments != hole, whole.batch.tile_segment != hole
    assert not batch.loss_weights[~here].any()
    assert not batch.tile_grid[~there].any()
    assert (~here).any()
    assert (~there).any()
    for name in ("tokens", "loss_weights", "positions", "segments", "splice"):
        np.testing.assert_array_equal(getattr(batch, name)[here], getattr(whole.batch, name)[here], err_msg=name)
    for name in ("patches", "tile_grid", "tile_segment", "tile_slot"):
        np.testing.assert_array_equal(getattr(batch, name)[there], getattr(whole.batch, name)[there], err_msg=name)


def test_an_empty_source_is_refused(preparer):
    with pytest.raises(UserError, match="memory: the data set is empty"):
        Batches(MemorySource([]), preparer, CONFIG, 0, START)


def test_shapes_come_from_the_records_unless_they_are_given(source, preparer, conversations):
    config = MixtureConfig(rows=2)
    numbered = Batches(source, dataclasses.replace(preparer, max_tokens=4000), config, seed=5)
    sizes = np.array([preparer.measure(c)[:2] for c in conversations])
    assert numbered.shape[:2] >= tuple(sizes.max(axis=0))
    assert numbered.bad == ()
    batch = numbered[0].batch
    assert batch.tokens.shape == (2, numbered.shape.tokens)
    assert batch.patches.shape[:2] == (2, numbered.shape.tiles)
    short = Batches(source, dataclasses.replace(preparer, max_tokens=110), config, seed=5)  # the model's context
    assert short.shape.tokens == 110
    assert {error.place for error in short.bad} == {f"memory:{n + 1}" for n in np.flatnonzero(sizes[:, 0] > 110)}


def test_hosts_load_rows_of_their_own(source, preparer, straight, monkeypatch):
    loaded = []
    prepare = type(preparer).__call__
    monkeypatch.setattr(
        type(preparer),
        "__call__",
        lambda self, record, **draw: loaded.append(record.id) or prepare(self, record, **draw),
    )
    config, hosts = dataclasses.replace(CONFIG, rows=3), ((0, 2), (1,))
    seen = []
    for rows in hosts:
        numbered = Batches(source, preparer, config, seed=5, rows=rows)
        loaded.clear()
        for number in range(4):
            position, batch, bad = numbered[number]
            assert (position, bad) == (straight[number].position, ())
            for name in batch._fields[:-1]:
                whole = getattr(straight[number].batch, name)
                np.testing.assert_array_equal(getattr(batch, name), whole[list(rows)], err_msg=name)
        seen.append(set(loaded))
    assert seen[0]
    assert seen[1]
    assert not seen[0] & seen[1]


def test_digests_tell_plans_apart(source, preparer, conversations):
    def digest(**changes):
        arguments = dict(source=source, preparer=preparer, config=CONFIG, seed=5, stage=0) | changes
        return Batches(arguments.pop("source"), arguments.pop("preparer"), arguments.pop("config"), **arguments).digest

    longer = dataclasses.replace(conversations[3], turns=(Turn("user", "a b c d"), Turn("assistant", "e")))
    changed = MemorySource([*conversations[:3], longer, *conversations[4:]])
    same, *others = [
        digest(),
        digest(seed=6),
        digest(stage=1),
        digest(source=changed),
        digest(config=dataclasses.replace(CONFIG, weights={"a": 2.0, "b": 1.0})),
        digest(config=dataclasses.replace(CONFIG, window=25)),
    ]
    assert same == digest()
    assert same == digest(start=Position(0, 1, 0), rows=(1,))
    assert len({same, *others}) == 6
