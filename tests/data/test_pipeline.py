import dataclasses
import itertools
import os
import pickle
import signal
import subprocess
import sys
import textwrap
import time
from collections import Counter

import numpy as np
import pytest

from tests.meta_fixture import write_meta
from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.feed import batches
from vlm_jax.data.formats.meta import open_meta
from vlm_jax.data.pipeline import START, Batches, Position
from vlm_jax.data.plan.index import load_index
from vlm_jax.data.plan.mixture import MixtureConfig, epoch_records, task_weights
from vlm_jax.data.quarantine import row_of
from vlm_jax.data.sources import ManySources, MemorySource
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


def test_nothing_is_left_after_a_kill(tmp_path):
    script = tmp_path / "feed.py"
    script.write_text(
        textwrap.dedent(
            """
            import multiprocessing, time
            from vlm_jax.data import feed, prepare, sources, tiling
            from vlm_jax.data.plan import mixture
            from vlm_jax.data.text import templates, tokenizer
            from vlm_jax.data.conversation import Conversation, Turn

            if __name__ == "__main__":
                words = tokenizer.Tokenizer.train(["a b c"], 300)
                template, layout = templates.TEMPLATES["internvl2"], tiling.ClosestAspect(tile_size=28)
                preparer = prepare.Preparer(words, template, layout, 14, 2, 500)
                data = sources.MemorySource([Conversation((Turn("user", "a"), Turn("assistant", "b")))])
                config = mixture.MixtureConfig(rows=1, tokens=500, tiles=2)
                seen = feed.batches(data, preparer, config, 0, workers=1)
                next(seen), next(seen)
                print(*(child.pid for child in multiprocessing.active_children()), flush=True)
                time.sleep(60)
            """
        )
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in process.stdout.readline().split()]
    shared = {file for pid in (process.pid, *workers) for file in shared_memory(pid)}
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert workers
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)
    assert shared
    while any(map(os.path.exists, shared)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(os.path.exists, shared))


def shared_memory(pid):
    """Files of shared memory that a process has mapped (others on the machine have some, too)."""
    with open(f"/proc/{pid}/maps") as file:
        return {line.split()[-1] for line in file if "/dev/shm/psm_" in line}


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


class Stored(MemorySource):
    """A source in memory that pretends to lie in `folder`."""

    folder = None
    content = "1"
    reads = 0

    def __getitem__(self, index):
        type(self).reads += 1
        return super().__getitem__(index)

    def fingerprint(self):
        return self.content


def test_the_index_is_kept_beside_the_data(conversations, preparer, tmp_path, caplog):
    class Here(Stored):
        folder = tmp_path

    source = Here(conversations)
    first = load_index(source, preparer)
    assert Here.reads == 60
    again = load_index(source, preparer)
    assert Here.reads == 60
    np.testing.assert_array_equal(first.sizes, again.sizes)
    np.testing.assert_array_equal(first.task_ids, again.task_ids)
    assert first.tasks == again.tasks == ("a", "b")
    np.testing.assert_array_equal(first.least, again.least)
    assert (*first.sizes[7], first.least[7]) == preparer.measure(conversations[7])

    load_index(source, dataclasses.replace(preparer, tokens_per_tile=3))
    assert Here.reads == 120
    Here.content = "2"
    load_index(source, preparer)
    assert Here.reads == 180
    assert len(list(tmp_path.iterdir())) == 3
    load_index(source, dataclasses.replace(preparer, max_tokens=50))  # measured once for every limit
    assert Here.reads == 180

    Here.folder = tmp_path / "missing"
    load_index(source, preparer)
    assert "index of record sizes was not kept" in caplog.text


def test_sources_behind_one_another_have_one_index(conversations, preparer, tmp_path):
    class Here(Stored):
        folder = tmp_path

    reversed_tasks = [dataclasses.replace(c, task={"a": "z", "b": "b"}[c.task]) for c in conversations[3:9]]
    both = ManySources((MemorySource(reversed_tasks), Here(conversations[:5]), MemorySource([])), "both")
    with pytest.raises(UserError, match="memory: the data set is empty"):
        load_index(both, preparer)
    both = ManySources(both.parts[:2], "both")
    index = load_index(both, preparer)
    assert len(list(tmp_path.iterdir())) == 1
    assert index.tasks == ("a", "b", "z")
    for number in range(11):
        conversation = [*reversed_tasks, *conversations[:5]][number]
        assert both[number] == conversation
        assert index.tasks[index.task_ids[number]] == conversation.task
        assert (*index.sizes[number], index.least[number]) == preparer.measure(conversation)


def test_the_kept_index_names_records_as_the_data_is_called_now(preparer, tmp_path, monkeypatch):
    write_meta(tmp_path, scale=0.3)
    (tmp_path / "pages.jsonl").write_text("{}\n" + (tmp_path / "pages.jsonl").read_text())
    monkeypatch.chdir(tmp_path)
    (first,) = load_index(open_meta("meta.json"), preparer).bad.values()
    assert first.place == "pages.jsonl:1"
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    (again,) = load_index(open_meta("../meta.json"), preparer).bad.values()
    assert again.place == "../pages.jsonl:1"
    assert row_of(again).source == str(tmp_path / "pages.jsonl")  # so that a continued run does not count it twice


def test_an_empty_source_is_refused(preparer):
    with pytest.raises(UserError, match="memory: the data set is empty"):
        Batches(MemorySource([]), preparer, CONFIG, 0, START)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (dict(sampling="size"), {"a": 40, "b": 20}),
        (dict(sampling="size", epoch_records=30), {"a": 20, "b": 10}),
        (dict(sampling="weight", weights={"a": 1.0, "b": 3.0}), {"a": 15, "b": 45}),
        (dict(sampling="sqrt_size", epoch_records=60), {"a": 60 * 40**0.5 / (40**0.5 + 20**0.5), "b": 24.85}),
        (dict(cap=25), {"a": 25, "b": 20}),
        (dict(cap=25, weights={"b": 3.0}), {"a": 0, "b": 25}),
    ],
)
def test_mixtures(source, preparer, changes, expected):
    index = load_index(source, preparer)
    weights = task_weights(index, dataclasses.replace(CONFIG, **changes))
    epochs = [epoch_records(index, weights, (5, 0), epoch) for epoch in range(12)]
    for number, task in enumerate(index.tasks):
        ids = np.flatnonzero(index.task_ids == number)
        seen = np.bincount(np.concatenate(epochs), minlength=60)[ids]
        assert seen.max() - seen.min() <= 1  # in turn
        for records in epochs:
            assert abs(np.isin(records, ids).sum() - expected[task]) <= 1


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


def test_sources_are_measured_in_processes(tmp_path, preparer):
    meta = write_meta(tmp_path, scale=0.3)
    lines = (tmp_path / "pages.jsonl").read_text().splitlines()
    (tmp_path / "pages.jsonl").write_text("\n".join([*lines, "{}"]))
    alone = load_index(open_meta(meta), preparer, workers=0)
    for path in tmp_path.glob("index-*.npz"):
        path.write_bytes(path.read_bytes()[:-50])  # damaged ones are made anew
    index = load_index(open_meta(meta), preparer, workers=2)
    np.testing.assert_array_equal(index.sizes, alone.sizes)
    np.testing.assert_array_equal(index.least, alone.least)
    np.testing.assert_array_equal(index.task_ids, alone.task_ids)
    assert index.tasks == alone.tasks
    ((number, error),) = index.bad.items()
    assert str(error) == str(alone.bad[number])
    assert error.place.endswith(f"pages.jsonl:{len(lines) + 1}")


def test_records_that_could_not_be_used_are_measured_again_on_demand(tmp_path, preparer):
    meta = write_meta(tmp_path, scale=0.3)
    picture = next((tmp_path / "images/photos").iterdir())
    content = picture.read_bytes()
    whole = load_index(open_meta(meta), preparer)
    for path in tmp_path.glob("index-*.npz"):
        path.unlink()
    picture.unlink()
    without = load_index(open_meta(meta), preparer)
    assert {error.reason for error in without.bad.values()} == {"missing"}
    picture.write_bytes(content)
    assert load_index(open_meta(meta), preparer).bad.keys() == without.bad.keys()
    for again in (True, False):
        index = load_index(open_meta(meta), preparer, again=again)
        assert not index.bad
        np.testing.assert_array_equal(index.sizes, whole.sizes)
        np.testing.assert_array_equal(index.least, whole.least)
        np.testing.assert_array_equal(index.task_ids, whole.task_ids)
