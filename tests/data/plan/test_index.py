"""The index of record sizes: where it is kept, what makes it anew."""

import dataclasses

import numpy as np
import pytest

from tests.meta_fixture import write_meta
from vlm_jax.data.formats.meta import open_meta
from vlm_jax.data.plan.index import load_index
from vlm_jax.data.quarantine import row_of
from vlm_jax.data.sources import ManySources, MemorySource
from vlm_jax.errors import UserError


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
