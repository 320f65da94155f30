import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from vlm_jax.data.conversation import Conversation, RecordError
from vlm_jax.data.quarantine import Quarantine, Row, remove, row_of
from vlm_jax.data.sources import ManySources, MemorySource
from vlm_jax.errors import UserError


def error(number, reason="missing", file="/d/a.jsonl"):
    return RecordError(f"{file}:{number}", reason, f"image: '{number}.jpg' cannot be read")


class MadeUp:
    """A part of a data set, in the first lines of a file."""

    def __init__(self, name, count, path):
        self.name, self.count, self.lines = name, count, SimpleNamespace(path=path)

    def __len__(self):
        return self.count


def rows_in(path):
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def test_rows_name_file_line_reason_and_detail(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(path, 1000)
    assert not path.exists()
    assert quarantine.summary() == "no bad record among 1,000"
    strange = RecordError("/d/b:2/c.jsonl:7", "json", 'not valid JSON: "\n\u2028猫')
    quarantine.add([error(3), strange, RecordError("record train:12", "box", "b"), RecordError("record 9", "box", "b")])
    assert rows_in(path) == [
        {"source": "/d/a.jsonl", "line": 3, "reason": "missing", "detail": "image: '3.jpg' cannot be read"},
        {"source": "/d/b:2/c.jsonl", "line": 7, "reason": "json", "detail": 'not valid JSON: "\n\u2028猫'},
        {"source": "", "line": "train:12", "reason": "box", "detail": "b"},
        {"source": "", "line": 9, "reason": "box", "detail": "b"},
    ]
    assert quarantine.counts == {"missing": 1, "json": 1, "box": 2}
    assert quarantine.summary() == "4 of 1,000 records are bad (0.4 %: box 2, missing 1, json 1)"


def test_records_without_a_file_are_named_by_their_data_set():
    assert row_of(RecordError("record r17", "turns", "x"), "data (train)") == Row("data (train)", "r17", "turns", "x")
    assert row_of(RecordError("record 17", "turns", "x"), "data (train)") == Row("data (train)", 17, "turns", "x")


def test_each_record_counts_once_also_after_a_restart(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(path, 1000)
    quarantine.add([error(3), error(4), error(3, "marks")])
    quarantine.add([error(4), error(5)])
    quarantine.add([])
    assert [row.line for row in quarantine.rows] == [3, 4, 5]

    again = Quarantine(path, 1000)
    assert again.rows == quarantine.rows
    assert again.counts == quarantine.counts
    again.add([error(5), error(6), error(3, file="/d/other.jsonl")])
    assert [(row["source"], row["line"]) for row in rows_in(path)] == [
        ("/d/a.jsonl", 3),
        ("/d/a.jsonl", 4),
        ("/d/a.jsonl", 5),
        ("/d/a.jsonl", 6),
        ("/d/other.jsonl", 3),
    ]


@pytest.mark.parametrize("cut", [1, 20, 60])
def test_a_torn_last_line_is_dropped_and_written_again(tmp_path, cut):
    path = tmp_path / "quarantine.jsonl"
    Quarantine(path, 1000).add([error(3), error(4)])
    whole = path.read_bytes()
    path.write_bytes(whole[:-cut])
    again = Quarantine(path, 1000)
    assert [row.line for row in again.rows] == [3]
    again.add([error(3), error(4)])
    assert path.read_bytes() == whole


def test_too_many_are_one_clear_error_after_they_were_written(tmp_path):
    path = tmp_path / "quarantine.jsonl"
    quarantine = Quarantine(path, 200, limit=0.01, setting="config.data.max_bad")
    quarantine.add([error(1), error(2)])  # just as many as may be
    with pytest.raises(UserError) as raised:
        quarantine.add([error(3, "marks")])
    message = str(raised.value)
    assert "\n" not in message
    for part in (
        "3 of 200 records are bad (1.5 %: missing 2, marks 1)",
        "only 1 % may be (config.data.max_bad)",
        "/d/a.jsonl:1: image: '1.jpg' cannot be read",
        str(path),
        "--fix",
    ):
        assert part in message
    assert len(rows_in(path)) == 3

    assert "mended since" not in message
    with pytest.raises(UserError, match=r"3 of 200.*if it was mended since, remove"):  # a restart does not forget
        Quarantine(path, 200).add([error(1)])
    remove(path)
    Quarantine(path, 200).add([error(1)])
    assert len(rows_in(path)) == 1


def test_a_file_is_the_same_from_every_folder(tmp_path, monkeypatch):
    (tmp_path / "sub").mkdir()
    for folder, name in ((tmp_path, "sub/a.jsonl"), (tmp_path / "sub", "a.jsonl"), (tmp_path, "./sub/a.jsonl")):
        monkeypatch.chdir(folder)
        Quarantine(tmp_path / "q", 1000).add([error(1, file=name)])
    assert [row["source"] for row in rows_in(tmp_path / "q")] == [str(tmp_path / "sub/a.jsonl")]


def test_nothing_may_be_bad_where_the_limit_is_zero(tmp_path):
    Quarantine(tmp_path / "q", 10, limit=0).add([])
    with pytest.raises(UserError, match="1 of 10"):
        Quarantine(tmp_path / "q", 10, limit=0).add([error(1)])


def test_a_source_with_nothing_left(tmp_path):
    quarantine = Quarantine(tmp_path / "q", 10, limit=1)
    quarantine.add([error(1, "marks", "/d/other.jsonl"), error(1), error(2, "json")])
    pages = SimpleNamespace(name="pages (/d/a.jsonl)", lines=SimpleNamespace(path=Path("/d/a.jsonl")))
    message = str(quarantine.nothing_left(pages))
    assert message.startswith("pages (/d/a.jsonl): no record is left that can be used (missing 1, json 1)")
    assert "/d/a.jsonl:1: image" in message
    assert str(tmp_path / "q") in message


def test_sources_that_are_used_up_end_the_work(tmp_path):
    pages = MadeUp("pages", 2, Path("/d/a.jsonl"))  # of a file of five lines
    other = MadeUp("other", 1, Path("/d/other.jsonl"))
    quarantine = Quarantine(tmp_path / "q", 10, limit=1, source="both")
    quarantine.add([error(1), error(4), error(5)])
    quarantine.refuse_used_up(ManySources((pages, other), "both"))
    quarantine.add([error(2)])
    with pytest.raises(UserError, match=r"^pages: no record is left that can be used \(missing 4\)"):
        quarantine.refuse_used_up(ManySources((other, pages), "both"))
    stored = Quarantine(tmp_path / "r", 10, limit=1, source="prepared")
    records = MemorySource([Conversation((), id="a"), Conversation((), id="b")])
    stored.add([RecordError("record a", "image", "cut off")])
    stored.refuse_used_up(records)
    stored.add([RecordError("record b", "image", "cut off")])
    with pytest.raises(UserError, match=r"^memory: no record is left that can be used \(image 2\)"):
        stored.refuse_used_up(records)


@pytest.mark.parametrize("content", ["my thesis", "my thesis\n", '{"source": "a"}\n', '{"source": 1}', "[1]\n"])
def test_other_files_are_neither_read_nor_removed(tmp_path, content):
    path = tmp_path / "thesis.txt"
    path.write_text(content)
    if content == '{"source": 1}':  # as a first row that was cut off
        assert Quarantine(path, 10).rows == []
        return
    for touch in (lambda: Quarantine(path, 10), lambda: remove(path)):
        with pytest.raises(UserError, match=r"thesis\.txt:1: not a row"):
            touch()
    assert path.read_text() == content


def test_a_file_that_cannot_be_written(tmp_path):
    quarantine = Quarantine(tmp_path / "nowhere" / "q", 10)
    with pytest.raises(UserError, match="cannot write the list of bad records"):
        quarantine.add([error(1)])
