import json
import pickle
import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vlm_jax.data.formats import json_list
from vlm_jax.data.formats.json_list import JsonList
from vlm_jax.errors import UserError


def written(folder, text):
    path = folder / "a.json"
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


# Much of what is special to a scanner, and little else.
_TEXT = st.text(alphabet='"\\[]{},a\n é', max_size=12)
_VALUE = st.recursive(
    st.none() | st.integers() | _TEXT,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_TEXT, inner, max_size=3),
    max_leaves=12,
)


@pytest.mark.parametrize("chunk", [1, 2, 3, 7, 1 << 20])
def test_elements_are_those_that_a_parser_finds(tmp_path, monkeypatch, chunk):
    monkeypatch.setattr(json_list, "_CHUNK", chunk)

    @settings(max_examples=60, derandomize=True)
    @given(
        st.lists(_VALUE, max_size=5), st.sampled_from([None, 1]), st.booleans(), st.sampled_from(["", "\n", " \t\n"])
    )
    def check(values, indent, ascii_only, blank):
        text = "\ufeff" * (indent is None) + blank + json.dumps(values, indent=indent, ensure_ascii=ascii_only) + blank
        found = JsonList(written(tmp_path, text))
        assert [json.loads(found[number]) for number in range(len(found))] == values

    check()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "must be a JSON list of records"),
        ('{"a": 1}', "must be a JSON list of records"),
        ("[", "the file ends within record 1"),
        ('[{"a": "]"}, {"b": 1', "the file ends within record 2"),
        ('["a', "the file ends within record 1"),
        ('["\\"]', "the file ends within record 1"),
        ("[1] [2]", "something follows the end of the list, after byte 2"),
        ("[1]]", "something follows"),
    ],
)
def test_mistakes(tmp_path, text, message):
    with pytest.raises(UserError, match=message):
        JsonList(written(tmp_path, text))


def test_what_is_no_file_and_what_is_empty(tmp_path):
    with pytest.raises(UserError, match=r"none.json: cannot be read: No such file"):
        JsonList(tmp_path / "none.json")
    assert len(JsonList(written(tmp_path, " [ \n] \n"))) == 0
    assert [JsonList(written(tmp_path, "[1,]"))[number] for number in range(2)] == [b"1", b""]  # its reader complains


def test_copies_read_the_same(tmp_path):
    found = JsonList(written(tmp_path, json.dumps([{"a": number} for number in range(100)])))
    assert found[99] == b'{"a": 99}'
    again = pickle.loads(pickle.dumps(found))
    order = random.Random(0).sample(range(100), 100)
    assert [json.loads(again[number])["a"] for number in order] == order


def test_a_large_file_is_searched_quickly_and_never_held(tmp_path):
    import tracemalloc

    record = json.dumps(
        {"image": "a.jpg", "conversations": [{"from": "human", "value": '<image>\n"What, {is} it?"'}] * 4}
    )
    count = 150_000
    path = tmp_path / "a.json"
    path.write_text("[" + ",\n".join([record] * count) + "]")
    began = time.monotonic()
    found = JsonList(path)
    seconds = time.monotonic() - began
    assert len(found) == count
    assert found[count - 1] == record.encode()
    assert path.stat().st_size / seconds > 10e6  # bytes a second; it is about ten times that
    tracemalloc.start()
    try:
        JsonList(path)
        assert tracemalloc.get_traced_memory()[1] < 150e6  # a chunk's arrays, however large the file
    finally:
        tracemalloc.stop()
