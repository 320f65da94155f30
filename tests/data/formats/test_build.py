import dataclasses
import filecmp
import io
import json
import tracemalloc

import numpy as np
import pytest
from PIL import Image

from tests.imports import imported_by
from tests.meta_fixture import RECORDS, turns, write_lines, write_meta
from vlm_jax.data import build
from vlm_jax.data.conversation import Conversation, RecordError, Turn
from vlm_jax.data.formats import shards
from vlm_jax.data.formats.open import open_data
from vlm_jax.data.formats.shards import write_shards
from vlm_jax.data.formats.tfds import TFDSSource, find_tfds
from vlm_jax.data.plan.index import load_index
from vlm_jax.data.sources import MemorySource
from vlm_jax.errors import UserError
from vlm_jax.training.data import TFDSData

MARKED = "<image>\nWhat?"


@pytest.fixture(scope="module")
def meta(tmp_path_factory):
    return write_meta(tmp_path_factory.mktemp("meta"), scale=0.1)


@pytest.fixture(scope="module")
def prepared(meta, tmp_path_factory):
    folder = tmp_path_factory.mktemp("sets") / "my_set" / "1.0.0"
    write_shards({"train": open_data(meta), "test": open_data(meta.parent / "talk.jsonl")}, folder, shards=3, seed=1)
    return folder


def by_place(source):
    return {source[number].place: source[number] for number in range(len(source))}


def test_records_come_back_whole_and_in_another_order(meta, prepared):
    given, read = open_data(meta), open_data(prepared)
    assert isinstance(read, TFDSSource)
    assert len(read) == len(given) == 3 * RECORDS + RECORDS // 2
    assert by_place(read) == by_place(given)  # JPEG files among them, byte for byte
    assert any(image.startswith(b"\xff\xd8") for image in read[0].images + read[1].images + read[2].images)
    places = [[source[number].place for number in range(len(source))] for source in (given, read)]
    assert places[0] != places[1]
    assert read.weights == {"captions": 1, "pages": 2, "pairs": 1, "talk": 1}
    assert len(open_data(prepared, split="test")) == RECORDS
    assert open_data(prepared, split="test").weights == {}
    assert len(list(prepared.glob("my_set-train.array_record-0000?-of-00003"))) == 3


def test_the_index_is_the_same(meta, prepared, preparer):
    given, read = (load_index(open_data(path), preparer) for path in (meta, prepared))
    assert given.tasks == read.tasks
    assert sorted(given.sizes.tolist()) == sorted(read.sizes.tolist())


def test_seeds_decide_the_order_and_nothing_else_does(meta, prepared, tmp_path):
    again, other = tmp_path / "my_set" / "1.0.0", tmp_path / "b" / "my_set" / "1.0.0"
    splits = {"train": open_data(meta), "test": open_data(meta.parent / "talk.jsonl")}
    write_shards(splits, again, shards=3, seed=1)
    files = sorted(path.name for path in prepared.iterdir() if not path.name.startswith("index-"))
    assert filecmp.cmpfiles(prepared, again, files, shallow=False) == (files, [], [])
    write_shards(splits, other, shards=2, seed=2)
    orders = [[TFDSSource(folder, "train")[n].place for n in range(28)] for folder in (again, other)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1])


def test_every_field_is_kept(tmp_path, png):
    record = Conversation(
        (Turn("system", "s"), Turn("user", MARKED), Turn("assistant", "é")),
        (png(9, 8),),
        "i",
        "t",
        True,
        "x:1",
        3,
        True,
    )
    plain = Conversation((Turn("user", "?"), Turn("assistant", "!")), id="j", task="u")
    write_shards({"train": MemorySource([record, plain])}, tmp_path / "one")
    read = TFDSSource(tmp_path / "one", "train")
    assert {read[0].id: read[0], read[1].id: read[1]} == {"i": record, "j": plain}


def test_frames_of_a_decoder_are_stored_as_png(tmp_path):
    frame = Image.radial_gradient("L").convert("RGB").resize((30, 20))
    stream = io.BytesIO()
    frame.save(stream, "PPM")
    record = Conversation((Turn("user", MARKED), Turn("assistant", "!")), (stream.getvalue(),), "i", "t")
    write_shards({"train": MemorySource([record])}, tmp_path / "one")
    stored = Image.open(io.BytesIO(TFDSSource(tmp_path / "one", "train")[0].images[0]))
    assert stored.format == "PNG"
    assert stored.tobytes() == frame.tobytes()


def test_bad_records_are_left_out_and_told(tmp_path, png):
    records = [
        {"image": name, "conversations": turns(MARKED, "!")}
        for name in ("a.png", "none.png", "b.png", "0.png", "c.ppm", "a.png")
    ]
    (tmp_path / "a.png").write_bytes(png(30, 20))
    (tmp_path / "b.png").write_bytes(b"no picture")
    (tmp_path / "0.png").touch()
    (tmp_path / "c.ppm").write_bytes(b"P6 9 9 255\n" + bytes(100))  # cut off
    source = open_data(write_lines(tmp_path / "a.jsonl", records))
    bad = []
    built = write_shards(
        {"train": source}, tmp_path / "one", bad=lambda split, error: bad.append((split, error.reason))
    )
    assert bad == [("train", reason) for reason in ("missing", "image", "empty file", "image")]
    assert built["train"].records == len(open_data(tmp_path / "one")) == 2
    with pytest.raises(RecordError, match=r"a.jsonl:2: image: 'none.png' cannot be read"):
        write_shards({"train": source}, tmp_path / "two")
    assert not (tmp_path / "two").exists()
    assert not [path for path in tmp_path.iterdir() if "partial" in path.name]
    none = MemorySource([dataclasses.replace(open_data(tmp_path / "one")[0], images=(b"",))])
    with pytest.raises(UserError, match="memory: no record can be read, nothing is left for split 'train'"):
        write_shards({"train": none}, tmp_path / "two", bad=lambda split, error: None)


@pytest.mark.parametrize(
    ("folder", "options", "message"),
    [
        ("my-set", {}, "'my-set' cannot be a data set's name"),
        ("1.0.0", {}, r"cannot be a data set's name"),
        ("a", {"seed": -1}, "the seed must not be negative"),
        ("a", {"shards": 0}, "the number of shards must lie in"),
        ("taken", {}, "taken: already exists"),
    ],
)
def test_mistakes(tmp_path, folder, options, message):
    base = tmp_path / "0"  # no name for a data set
    (base / "taken").mkdir(parents=True)
    (base / "taken" / "x").touch()
    record = Conversation((Turn("user", "?"), Turn("assistant", "!")))
    with pytest.raises(UserError, match=message):
        write_shards({"train": MemorySource([record])}, base / folder, **options)
    assert {path.name for path in base.iterdir()} == {"taken"}


def test_shards_are_as_large_as_they_should_be(tmp_path, monkeypatch):
    monkeypatch.setattr(shards, "SHARD_BYTES", 1000)
    records = [Conversation((Turn("user", "?" * 300), Turn("assistant", "!")), id=str(n)) for n in range(20)]
    built = write_shards({"train": MemorySource(records)}, tmp_path / "one")["train"]
    assert built.shards == -(-built.bytes // 1000) > 5
    few = write_shards({"train": MemorySource(records[:2])}, tmp_path / "two", shards=7)["train"]
    assert few.shards == 2  # none is empty


class Made:
    """Records that exist only while they are looked at."""

    name = "made"

    def __init__(self, count, picture):
        self.count, self.picture = count, picture

    def __len__(self):
        return self.count

    def __getitem__(self, index):
        return Conversation(
            (Turn("user", MARKED), Turn("assistant", str(index))), (self.picture + bytes(100_000),), str(index)
        )


def test_memory_is_that_of_a_record(tmp_path):
    stream = io.BytesIO()
    Image.new("RGB", (10, 10)).save(stream, "JPEG")
    write_shards({"train": Made(2, stream.getvalue())}, tmp_path / "warm")
    tracemalloc.start()
    try:
        write_shards({"train": Made(300, stream.getvalue())}, tmp_path / "one", shards=2)  # 30 MB
        assert tracemalloc.get_traced_memory()[1] < 5e6
    finally:
        tracemalloc.stop()


def test_bad_records_of_a_prepared_data_set_count_and_the_others_are_used(tmp_path, preparer):
    def record(name, answer):
        return Conversation((Turn("user", "?"), Turn("assistant", answer)), id=name)

    write_shards({"train": MemorySource([record("a", "!"), record("b", ""), record("c", "!")])}, tmp_path / "one")
    index = load_index(open_data(tmp_path / "one"), preparer)
    assert [(error.place, error.reason) for error in index.bad.values()] == [("record b", "empty answer")]
    assert np.count_nonzero(index.sizes[:, 0]) == 2


def test_the_command(meta, tmp_path, capsys):
    out = tmp_path / "sets" / "my_set" / "2.0.0"
    write_lines(tmp_path / "more.jsonl", [{"conversations": turns(str(n), "!" if n else "")} for n in range(120)])
    arguments = [f"--data={meta}", f"--test={tmp_path / 'more.jsonl'}", f"--out={out}", "--shards=2", "--seed=3"]
    code = "import sys; from vlm_jax.data.build import main; main(sys.argv[1:])"
    assert imported_by(code, "tensorflow", "jax", arguments=tuple(arguments), cwd=tmp_path) == set()
    printed = capsys.readouterr()
    lines = printed.out.splitlines()
    assert lines[0].startswith("train: 28 records, ")
    assert lines[1].startswith("test: 119 records, ")
    assert "1 of 148 records are bad" in lines[2]
    assert "empty answer" in lines[2]
    assert "Reading: 148/148 done" in printed.err
    row = json.loads((tmp_path / "quarantine.jsonl").read_text())
    assert (row["source"], row["line"], row["reason"]) == (f"{tmp_path}/more.jsonl", 1, "empty answer")
    with pytest.raises(UserError, match=r"records are bad .*, but only 0 % may be"):
        build.main([*arguments, "--overwrite", "--max-bad=0", f"--quarantine={tmp_path / 'q.jsonl'}"])
    assert len(TFDSSource(out, "test")) == 119  # the old one stays
    with pytest.raises(UserError, match=r"--quarantine: .*its folder does not exist"):
        build.main([*arguments, "--overwrite", f"--quarantine={tmp_path / 'nowhere' / 'q.jsonl'}"])


def test_data_sets_by_name(prepared, tmp_path, monkeypatch):
    sets = prepared.parents[1]
    for name in ("my_set", "my_set:1.0.0", "my_set:1.*.*"):
        assert find_tfds(name, sets) == prepared
    splits = TFDSData(name="my_set", data_dir=str(sets)).open(tmp_path, 0, print)
    assert (len(splits.train), splits.validation, len(splits.test)) == (28, None, RECORDS)
    monkeypatch.setenv("TFDS_DATA_DIR", str(sets))
    assert len(TFDSData(name="my_set").open(tmp_path, 0, print).train) == 28
    assert len(TFDSData(directory=str(prepared)).open(tmp_path, 0, print).train) == 28
    for wrong, message in (
        ("other", "no prepared TFDS data set 'other'; there are my_set/1.0.0"),
        ("my_set:3.0.0", "no prepared TFDS data set 'my_set:3.0.0'"),
        ("my_set/config", "no prepared TFDS data set"),
        ("a b:c:d", "not the name of a TFDS data set"),
    ):
        with pytest.raises(UserError, match=message):
            find_tfds(wrong, sets)
    for fields, problem in (({}, "neither is given"), ({"name": "a", "directory": "b"}, "both are given")):
        with pytest.raises(UserError, match=rf"config.data.directory, config.data.name: {problem}"):
            TFDSData(**fields).open(tmp_path, 0, print)
    with pytest.raises(UserError, match="not a prepared TFDS data set"):
        TFDSData(directory=str(tmp_path)).open(tmp_path, 0, print)


def test_finding_by_name_needs_no_tensorflow(prepared):
    code = (
        "from pathlib import Path; from vlm_jax.training.data import TFDSData\n"
        f"data = TFDSData(name='my_set:1.0.0', data_dir={str(prepared.parents[1])!r}).open(Path('.'), 0, print)\n"
        "assert data.train[0].turns"
    )
    assert imported_by(code, "tensorflow") == set()
