"""Every record looked at, by its header or whole."""

from collections import Counter

import numpy as np

from tests.meta_fixture import RECORDS, write_meta
from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.formats.meta import open_meta
from vlm_jax.data.inspection.survey import survey
from vlm_jax.data.plan.index import BAD, load_index
from vlm_jax.data.sources import MemorySource


def test_the_survey_finds_what_the_index_finds(bad, preparer):
    meta, _ = bad
    source = open_meta(meta)
    found, index = survey(source, preparer), load_index(source, preparer)
    boxes = {number for number, error in found.index.bad.items() if error.reason == "box"}
    assert set(found.index.bad) - boxes == set(index.bad) - boxes
    good = found.index.task_ids != BAD
    np.testing.assert_array_equal(found.index.sizes[good], index.sizes[good])
    np.testing.assert_array_equal(found.index.least[good], index.least[good])
    assert found.index.tasks == index.tasks
    parallel = survey(source, preparer, workers=2)
    np.testing.assert_array_equal(parallel.index.sizes, found.index.sizes)
    assert {n: str(e) for n, e in parallel.index.bad.items()} == {n: str(e) for n, e in found.index.bad.items()}
    pairs = [i for i in range(len(source)) if found.groups[found.group_ids[i]] == "pairs"]
    assert found.images[pairs].tolist() == [2, 3] * (RECORDS // 2)


def test_headers_are_enough(tmp_path, preparer, monkeypatch):
    """Of a large picture only the beginning is read, unless it is to be decoded."""
    meta = write_meta(tmp_path, 0.2)
    photo = tmp_path / "images/photos/coffee.jpg"
    photo.write_bytes(photo.read_bytes() + bytes(1 << 20))
    source = open_meta(meta)
    read = Counter()
    opened = type(source.parts[0])._read
    monkeypatch.setattr(
        type(source.parts[0]), "_read", lambda *a, header=False: (read.update([header]), opened(*a, header=header))[1]
    )
    survey(source, preparer)
    assert read == {True: len(source)}
    survey(source, preparer, deep=True, workers=0)
    assert read == {True: len(source), False: len(source)}


def test_sources_of_any_kind(preparer, png):
    """Without files there are tasks, and ids in place of lines."""
    good = Conversation((Turn("user", "Hm?"), Turn("assistant", "Ah.")), (png(30, 30),), "r0", "photos")
    broken = Conversation((Turn("user", "Hm?"), Turn("assistant", "Ah.")), (b"no",), "r1", "photos")
    found = survey(MemorySource([good, broken], "mine"), preparer)
    assert found.groups == ("photos", "mine")
    assert found.group_ids.tolist() == [0, 1]
    assert found.index.bad[1].place == "record r1"
