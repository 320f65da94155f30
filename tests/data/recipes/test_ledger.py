import os
import threading

import pytest

from vlm_jax.data.recipes.ledger import Entry, Ledger
from vlm_jax.errors import UserError

ONE = Entry("1 ask", "d1", {"choices": [{"message": {"content": "Grüße\n"}}]})
TWO = Entry("2 ask", "d2", None, "HTTP 400: too long")


def test_entries_are_there_again(tmp_path):
    with Ledger(tmp_path / "l.jsonl") as ledger:
        ledger.add(TWO)
        ledger.add(ONE)
        assert ledger.get("1 ask") == ONE
        assert ledger.get("3 ask") is None
    with Ledger(tmp_path / "l.jsonl") as ledger:
        assert list(ledger.entries()) == [ONE, TWO]
        assert "2 ask" in ledger


def test_what_a_crash_left_is_dropped(tmp_path):
    path = tmp_path / "l.jsonl"
    with Ledger(path) as ledger:
        ledger.add(ONE)
        ledger.add(TWO)
    whole = path.read_bytes()
    for cut in range(1, 20):
        path.write_bytes(whole[:-cut])
        with Ledger(path) as ledger:
            assert ledger.keys() == ["1 ask"]
            ledger.add(TWO)
        assert path.read_bytes() == whole


def test_finishing_sorts_and_what_comes_later_is_kept(tmp_path):
    paths = [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for path, entries in zip(paths, ([ONE, TWO], [TWO, ONE]), strict=True):
        with Ledger(path) as ledger:
            for entry in entries:
                ledger.add(entry)
            ledger.finish()
    assert paths[0].read_bytes() == paths[1].read_bytes()
    with Ledger(paths[0]) as ledger:
        ledger.finish(["2 ask"])
        ledger.add(Entry("0 ask", "d", {"x": 1}))
        assert ledger.get("2 ask") == TWO
        assert ledger.get("1 ask") is None
    with Ledger(paths[0]) as ledger:
        assert ledger.keys() == ["0 ask", "2 ask"]
    assert len(os.listdir(tmp_path)) == 2


def test_threads_write_whole_lines(tmp_path):
    entries = [Entry(f"{n:03} ask", "d", {"text": "x" * (n * 37 % 5000)}) for n in range(200)]
    with Ledger(tmp_path / "l.jsonl") as ledger:
        threads = [
            threading.Thread(target=lambda part=part: [ledger.add(entry) for entry in part])
            for part in (entries[i::8] for i in range(8))
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    with Ledger(tmp_path / "l.jsonl") as ledger:
        assert list(ledger.entries()) == entries


def test_one_process_at_a_time_and_nothing_else(tmp_path):
    with Ledger(tmp_path / "l.jsonl"), pytest.raises(UserError, match="another process"):
        Ledger(tmp_path / "l.jsonl")
    for text in ('{"a": 1}\n', "[]\n", "x\n", '{"key": "a", "request": "b"}\n', "one line of another file"):
        (tmp_path / "other.jsonl").write_text(text)
        with pytest.raises(UserError, match=r"other.jsonl:1: not an entry"):
            Ledger(tmp_path / "other.jsonl")
        assert (tmp_path / "other.jsonl").read_text() == text


def test_a_closed_ledger_writes_nowhere(tmp_path):
    with Ledger(tmp_path / "l.jsonl") as ledger:
        pass
    other = os.open(tmp_path / "other", os.O_CREAT | os.O_RDWR)
    with pytest.raises(UserError):
        ledger.add(ONE)
    assert os.fstat(other).st_size == 0
    os.close(other)
