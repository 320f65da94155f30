import json
import pickle
import random
import sys
import threading

import pytest

from tests.imports import imported_by
from tests.meta_fixture import turns
from vlm_jax.data.conversation import RecordError, Turn
from vlm_jax.data.formats import parquet
from vlm_jax.data.formats.open import open_data
from vlm_jax.data.formats.parquet import ParquetSource, open_parquet
from vlm_jax.data.plan.index import load_index
from vlm_jax.data.sources import place_of
from vlm_jax.errors import UserError

pa = pytest.importorskip("pyarrow")
import pyarrow.parquet as pq  # noqa: E402

TURNS = turns("<image>\nWhat?", "That.")


def write(path, rows, row_group_size=3, **columns):
    pq.write_table(pa.Table.from_pylist(rows, **columns), path, row_group_size=row_group_size)
    return path


@pytest.fixture(scope="module")
def pictures(png):
    return [png(20 + number, 30, number) for number in range(10)]


def row(picture, number=0, **fields):
    image = {"bytes": picture, "path": f"{number}.png"}
    return {"image": image, "conversations": turns("<image>\nWhat?", f"{number}"), **fields}


def test_rows_come_back_in_any_order(tmp_path, pictures, preparer):
    path = write(tmp_path / "a.parquet", [row(p, n, other=[1.5]) for n, p in enumerate(pictures)])
    source = open_data(path)
    assert isinstance(source, ParquetSource)
    for number in random.Random(0).sample(range(10), 10):
        record = source[number]
        assert record.images == (pictures[number],)
        assert record.turns == (Turn("user", "<image>\nWhat?"), Turn("assistant", str(number)))
        assert (record.id, record.task, record.place) == (f"a:{number + 1}", "a", f"{path}:{number + 1}")
    assert pickle.loads(pickle.dumps(source))[9] == source[9]
    assert len(load_index(source, preparer).sizes) == 10
    assert len(list(tmp_path.glob("index-*.npz"))) == 1
    with pytest.raises(IndexError):
        source[10]


@pytest.mark.parametrize(
    ("fields", "images", "asked"),
    [
        ({"image": {"bytes": b"x", "path": None}, "conversations": TURNS}, 1, "<image>\nWhat?"),
        ({"image": b"x", "conversations": json.dumps(TURNS)}, 1, "<image>\nWhat?"),
        (
            {
                "images": [{"bytes": b"x"}],
                "messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "!"}],
            },
            1,
            "What?",
        ),
        (
            {"images": [b"x", b"y"], "texts": [{"user": "Q", "assistant": "A", "source": "s"}]},
            2,
            "Image-1: <image>\nImage-2: <image>\nQ",
        ),
        ({"image": {"bytes": b"x"}, "question": "Q", "answers": ["a", "b"]}, 1, "Q"),
        ({"image": {"bytes": b"x"}, "question": "Q", "answer": "a", "answers": None}, 1, "Q"),
        ({"image": None, "question": "Q", "answer": "a"}, 0, "Q"),
        ({"question": "Q", "answer": "a"}, 0, "Q"),
        (
            {
                "images": [b"x"],
                "messages": [
                    {
                        "role": "user",
                        "content": [
                            {"index": 0, "text": None, "type": "image"},
                            {"index": None, "text": "Q", "type": "text"},
                        ],
                    },
                    {"role": "assistant", "content": [{"index": None, "text": "A", "type": "text"}]},
                ],
            },
            1,
            "<image>\nQ",
        ),
        ({"conversations": turns("Q", "A", system="S")}, 0, "S"),
    ],
)
def test_layouts(tmp_path, fields, images, asked):
    record = open_parquet(write(tmp_path / "a.parquet", [fields]))[0]
    assert record.images == (b"x", b"y")[:images]
    assert record.turns[0].text == asked


@pytest.mark.parametrize(
    ("fields", "reason", "message"),
    [
        (
            {"image": {"bytes": None, "path": "a.png"}, "conversations": TURNS},
            "missing",
            "bytes: there are none, only the path 'a.png'",
        ),
        (
            {"image": "a.png", "conversations": TURNS},
            "type",
            "image: must be a struct of bytes and path, or bytes, got str",
        ),
        ({"images": [b"", None], "conversations": TURNS}, "type", r"images\[1\]: must be a struct .*got NoneType"),
        (
            {"image": b"x", "images": [b"x"], "conversations": TURNS},
            "type",
            "images: the pictures are in image already",
        ),
        ({"image": None, "conversations": TURNS}, "marks", r"1 <image> mark\(s\) for 0 image"),
        ({"conversations": "[{"}, "json", "conversations: not valid JSON"),
        (
            {"conversations": None, "texts": [{"user": "?", "assistant": ""}]},
            "empty answer",
            r"texts\[0\].assistant: the answer",
        ),
        ({"question": None, "answer": "!"}, "type", "conversations: must be a list, got nothing"),
        ({"question": 3, "answer": "!"}, "type", "question: must be text, got a number"),
    ],
)
def test_bad_rows_name_file_row_and_column(tmp_path, fields, reason, message):
    path = write(tmp_path / "a.parquet", [fields])
    with pytest.raises(RecordError, match=message) as caught:
        open_parquet(path)[0]
    assert (caught.value.place, caught.value.reason) == (f"{path}:1", reason)


def test_shards_of_a_folder(tmp_path, pictures):
    folder = tmp_path / "my.set" / "data"
    folder.mkdir(parents=True)
    for shard in (0, 2, 10):
        write(folder / f"train-{shard}-of-11.parquet", [row(pictures[shard % 10], 10 * shard + n) for n in range(4)])
    write(folder / "val-0.parquet", [row(pictures[0], 7)])
    write(folder / "traindogs.parquet", [row(pictures[0], 8)])
    with pytest.raises(
        UserError, match=r"no files of split 'test' .*, there are files of no split's name, train, validation"
    ):
        open_data(tmp_path / "my.set", split="test")
    source = open_data(tmp_path / "my.set")
    assert [source[n].turns[1].text for n in range(len(source))] == [
        str(10 * s + n) for s in (0, 2, 10) for n in range(4)
    ]
    assert source[5].place == place_of(source, 5) == f"{folder}/train-2-of-11.parquet:2"
    assert source[5].task == "my.set"
    assert len(open_data(tmp_path / "my.set", split="validation")) == 1


def test_row_groups_are_read_once_in_order_and_kept_within_bounds(tmp_path, pictures, monkeypatch):
    source = open_parquet(write(tmp_path / "a.parquet", [row(p, n) for n, p in enumerate(pictures)]))
    read = []
    whole = pq.ParquetFile.read_row_group
    monkeypatch.setattr(
        pq.ParquetFile, "read_row_group", lambda self, group, **k: read.append(group) or whole(self, group, **k)
    )
    assert [source[n].turns[1].text for n in range(10)] == [str(n) for n in range(10)]
    assert read == [0, 1, 2, 3]
    monkeypatch.setattr(parquet, "_CACHE", 1)
    small, read[:] = pickle.loads(pickle.dumps(source)), []
    for number in (0, 9, 8, 7, 9, 0):
        assert small[number].images == (pictures[number],)
        assert len(small._groups._kept) == 1
    assert read == [0, 3, 2, 3, 0]


def test_threads_share_a_source(tmp_path, pictures, monkeypatch):
    monkeypatch.setattr(parquet, "_CACHE", 1)
    source = open_parquet(write(tmp_path / "a.parquet", [row(p, n) for n, p in enumerate(pictures)]))
    wrong = []

    def look(seed):
        numbers = random.Random(seed).choices(range(10), k=60)
        wrong.extend(number for number in numbers if source[number].images != (pictures[number],))

    threads = [threading.Thread(target=look, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not wrong


def test_a_row_is_read_with_its_group_alone(tmp_path, png):
    """Memory is that of a row group, not of the file."""
    rows = [row(bytes(100_000), number) for number in range(400)]
    path = write(tmp_path / "a.parquet", rows, row_group_size=10)
    source = open_parquet(path)
    peak = 0
    parquet_cache = parquet._CACHE
    try:
        parquet._CACHE = 1 << 21
        for number in range(0, 400, 7):
            source[number]
            peak = max(peak, sum(table.nbytes for table in source._groups._kept.values()))
    finally:
        parquet._CACHE = parquet_cache
    assert 0 < peak <= 1 << 21


def test_mistakes(tmp_path, pictures):
    write(tmp_path / "other.parquet", [{"label": 1, "text": "x"}])
    with pytest.raises(
        UserError, match=r"other.parquet: no column holds conversations: expected .*; there are label, text"
    ):
        open_data(tmp_path / "other.parquet")
    write(tmp_path / "half.parquet", [{"question": "?", "label": "x"}])
    with pytest.raises(UserError, match="there are question, label"):
        open_data(tmp_path / "half.parquet")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 no PAR1")
    with pytest.raises(UserError, match=r"bad.parquet: cannot read this Parquet file: "):
        open_data(tmp_path / "bad.parquet")
    write(tmp_path / "empty.parquet", [], schema=pa.schema({"question": pa.string(), "answer": pa.string()}))
    with pytest.raises(UserError, match=r"empty.parquet: the data set is empty"):
        open_data(tmp_path / "empty.parquet")
    with pytest.raises(UserError, match=r"has no .parquet files"):
        open_parquet(tmp_path / "none")


def test_a_damaged_group_spoils_its_rows_only(tmp_path, pictures):
    path = write(tmp_path / "a.parquet", [row(p, n) for n, p in enumerate(pictures)])
    start = pq.ParquetFile(path).metadata.row_group(1).column(0).data_page_offset
    content = bytearray(path.read_bytes())
    content[start : start + 40] = b"\xff" * 40
    path.write_bytes(content)
    source = open_parquet(path)
    assert source[2].images
    assert source[6].images
    with pytest.raises(RecordError, match=r"a.parquet:4: cannot be read: ") as caught:
        source[3]
    assert caught.value.reason == "missing"


def test_neither_pandas_nor_tensorflow(tmp_path, pictures):
    path = write(tmp_path / "a.parquet", [row(pictures[0])])
    code = f"from vlm_jax.data.formats.open import open_data; assert open_data({str(path)!r})[0].images"
    assert imported_by(code, "pandas", "tensorflow", "jax") == set()


def test_without_pyarrow_it_says_what_to_install(tmp_path, pictures, monkeypatch):
    path = write(tmp_path / "a.parquet", [row(pictures[0])])
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(UserError, match=r"reading Parquet needs pyarrow: pip install 'vlm_jax\[parquet\]'"):
        open_data(path)


def test_a_column_that_is_there_twice_is_refused(tmp_path):
    columns = [pa.array([text]) for text in ("q", "a", "b")]
    pq.write_table(pa.table(columns, names=["question", "answer", "answer"]), tmp_path / "a.parquet")
    with pytest.raises(UserError, match=r"a.parquet: there are several columns 'answer'"):
        open_parquet(tmp_path / "a.parquet")
