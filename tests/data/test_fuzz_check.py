"""Random damage: whatever is done to a data set, every line of it is counted as good or as bad."""

import io
import json
import os
import sys
from collections import Counter

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.data.checking import quarantined, small, survey_preparer
from tests.meta_fixture import write_meta
from vlm_jax.data import check
from vlm_jax.data.box_check import check_boxes
from vlm_jax.data.conversation import RecordError
from vlm_jax.data.formats.meta import open_meta
from vlm_jax.data.sources import place_of
from vlm_jax.errors import UserError


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("healthy")
    write_meta(
        folder, 0.1, talk={"length": None}, captions={"length": None}, pages={"length": None}, pairs={"length": None}
    )
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["<image>", "..", "/"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["from", "value", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)


FIELDS = ("image", "conversations", "id", "width", "video", "length", "images", "messages")


@st.composite
def damages(draw, healthy):
    """A copy of the files with some bytes, lines or fields changed."""
    files = dict(healthy)
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(sorted(path for path in files if path.name != "meta.json")))
        content = files[path]
        kind = draw(st.sampled_from(["bytes", "cut", "insert", "field", "gone"]))
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        if kind == "bytes":
            noise = draw(st.binary(min_size=1, max_size=6))
            files[path] = content[:place] + noise + content[place + len(noise) :]
        elif kind == "cut":
            files[path] = content[:place]
        elif kind == "insert":
            files[path] = content[:place] + draw(st.binary(max_size=20)) + content[place:]
        elif kind == "gone" and path.suffix == ".jpg":
            del files[path]
        elif path.suffix == ".jsonl" and content.strip():
            lines = content.splitlines(keepends=True)
            number = draw(st.integers(0, len(lines) - 1))
            try:
                record = json.loads(lines[number])
            except ValueError:
                continue
            if isinstance(record, dict):
                record[draw(st.sampled_from(FIELDS))] = draw(junk)
                lines[number] = json.dumps(record).encode() + b"\n"
                files[path] = b"".join(lines)
    return files


def usable(source, number, preparer):
    """Whether a run could train on the record."""
    try:
        conversation = source[number]
        preparer(conversation)
        check_boxes(conversation)
    except RecordError:
        return False
    return True


@given(data=st.data())
@settings(max_examples=25, suppress_health_check=list(HealthCheck))
def test_nothing_is_lost_uncounted(healthy, tmp_path_factory, preparer, data):
    files = data.draw(damages(healthy))
    folder = tmp_path_factory.mktemp("damaged")
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    out, problem = io.StringIO(), ""
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            arguments = [*small(folder / "meta.json"), "--deep", "--quarantine", folder / "q.jsonl", "--max-bad", 1]
            assert check.main([str(part) for part in arguments]) == 0
    except UserError as error:
        problem = str(error)
    assert "\n" not in problem
    if not out.getvalue():
        assert "nothing to learn from" in problem  # a file without a line
        return
    lines = {}
    for name, entry in json.loads((folder / "meta.json").read_text()).items():
        content = (folder / entry["annotation"]).read_bytes()
        found = content.split(b"\n")
        while found and not found[-1].strip():
            found.pop()
        lines[name] = int(len(found) * min(1, entry["repeat_time"]))
    table = {row[0]: row for row in map(str.split, out.getvalue().splitlines()) if row}
    assert {name: int(table[name][1].replace(",", "")) for name in lines} == lines
    bad = {name: int(table[name][2]) for name in lines}
    listed = quarantined(folder / "q.jsonl") if (folder / "q.jsonl").exists() else []
    source, preparer = open_meta(folder / "meta.json"), survey_preparer(folder / "meta.json")
    assert {(row["source"], row["line"]) for row in listed} == {
        (file, int(line))
        for number in range(len(source))
        for file, _, line in [place_of(source, number).rpartition(":")]
        if not usable(source, number, preparer)
    }
    by_file = Counter(os.path.basename(row["source"]).removesuffix(".jsonl") for row in listed)
    assert bad == {name: by_file[name] for name in lines}
