import json
import os
import pickle
import re
import time
from typing import get_args

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.meta_fixture import RECORDS, turns, write_lines, write_meta
from vlm_jax.data.conversation import Reason, RecordError, Turn
from vlm_jax.data.formats.annotations import AnnotationSource
from vlm_jax.data.formats.lines import Lines
from vlm_jax.data.formats.meta import open_meta, read_meta
from vlm_jax.data.formats.records import Record, parse
from vlm_jax.data.images import image_size
from vlm_jax.data.pipeline import Batches
from vlm_jax.data.plan.index import BAD, load_index
from vlm_jax.data.plan.mixture import MixtureConfig, task_weights
from vlm_jax.errors import UserError


@pytest.fixture(scope="module")
def meta(tmp_path_factory):
    return write_meta(tmp_path_factory.mktemp("meta"), scale=0.2)


@pytest.fixture(scope="module")
def source(meta):
    return open_meta(meta)


def by_name(source):
    return {part.task: part for part in source.parts}


def test_records_of_every_kind(meta, source):
    parts = by_name(source)
    assert len(source) == 3 * RECORDS + RECORDS // 2
    assert source.weights == {"captions": 1, "pages": 2, "pairs": 1, "talk": 1}
    image = (meta.parent / "images/photos/coffee.jpg").read_bytes()

    caption = parts["captions"][1]  # of chelsea, astronaut comes first
    assert caption.turns[:2] == (
        Turn("system", "Answer in one sentence."),
        Turn("user", "<image>\nWhat is shown here?"),
    )
    assert caption.id == "captions:2"
    assert caption.place == f"{meta.parent}/captions.jsonl:2"
    assert caption.augment
    assert caption.max_tiles is None
    assert len(parts["captions"][3].turns) == 4
    pair = parts["pairs"][1]
    assert pair.turns[0].text == "Image-1: <image>\nImage-2: <image>\nImage-3: <image>\nWhat do they show?"
    assert pair.images[1] == image
    assert not pair.augment
    assert (parts["pages"][0].max_tiles, parts["pages"][0].task) == (2, "pages")
    assert parts["talk"][3].turns == (
        Turn("system", "You count."),
        Turn("user", "What is 3 plus one?"),
        Turn("assistant", "4"),
    )
    assert parts["talk"][3].images == ()

    # Number by number the parts follow one another.
    assert [source[number] for number in range(len(source))] == [
        c for part in source.parts for c in map(part.__getitem__, range(len(part)))
    ]
    with pytest.raises(IndexError):
        source[len(source)]
    assert pickle.loads(pickle.dumps(source))[9] == source[9]


def test_marks_tiles_and_turned_pictures_reach_the_example(source, preparer):
    parts = by_name(source)
    without, with_mark = parts["captions"][0], parts["captions"][5]
    assert ["<image>" in conversation.turns[0].text for conversation in (without, with_mark)] == [False, True]
    for conversation in (without, with_mark):
        text = preparer.tokenizer.decode(preparer(conversation).tokens, skip_special=False)
        assert text.count("<img>") == text.count("</img>\nWhat is shown here?") == 1
    rocket = parts["captions"][7]
    width, height = image_size(rocket.images[0], "rocket")
    assert height > 3 * width
    wide = parts["pages"][1].images
    assert image_size(wide[0], "wide")[0] > 4 * image_size(wide[0], "wide")[1]
    assert preparer.measure(parts["pages"][1]).tiles == 2 + 1  # max_dynamic_patch 2
    assert preparer.layout.max_tiles == 4


def test_files_are_found_from_the_meta_file_and_may_be_absolute(tmp_path, monkeypatch):
    meta = write_meta(tmp_path / "a", scale=0.05, pairs={"annotation": str(tmp_path / "a" / "pairs.jsonl")})
    monkeypatch.chdir(tmp_path)
    relative = open_meta("a/meta.json")
    for number in (0, 8, 16, 24):
        assert relative[number].images == open_meta(meta)[number].images
        assert relative[number].id == open_meta(meta)[number].id


def test_repetition_becomes_weights_unless_the_recipe_has_some(source, preparer):
    index = load_index(source, preparer)
    assert index.tasks == ("captions", "pages", "pairs", "talk")
    config = MixtureConfig(rows=2, tokens=1000, tiles=20)
    assert task_weights(index, config, source.weights).tolist() == [1, 2, 1, 1]
    named = MixtureConfig(rows=2, tokens=1000, tiles=20, weights={"talk": 0.5, "pages": 1.0})
    assert task_weights(index, named, source.weights).tolist() == [0, 1, 0, 0.5]
    batches = Batches(source, preparer, config, seed=0)
    seen = np.bincount(np.concatenate(batches.rows(0, 0)), minlength=len(source))
    assert seen.tolist() == [1] * 8 + [2] * 8 + [1] * 8 + [1] * 4


def test_the_index_is_that_of_whole_files_and_made_once_a_source(tmp_path, preparer, monkeypatch):
    meta = write_meta(tmp_path, scale=0.3)
    source = open_meta(meta)
    index = load_index(source, preparer)
    for number in range(len(source)):
        example = preparer(source[number])
        assert index.sizes[number].tolist() == [len(example.tokens), len(example.patches)]
        assert index.tasks[index.task_ids[number]] == source[number].task
    assert len(list(tmp_path.glob("index-*.npz"))) == 4

    read = []
    monkeypatch.setattr(AnnotationSource, "_read", lambda self, *args, **kwargs: read.append(self.task) or 1 / 0)
    np.testing.assert_array_equal(load_index(open_meta(meta), preparer).sizes, index.sizes)
    assert read == []
    entries = json.loads(meta.read_text())
    entries["pairs"]["max_dynamic_patch"] = 1
    meta.write_text(json.dumps(entries))
    with pytest.raises(ZeroDivisionError):
        load_index(open_meta(meta), preparer)
    assert read == ["pairs"]


def test_the_index_goes_elsewhere_where_it_must(meta, tmp_path, monkeypatch):
    part = open_meta(meta, tmp_path).parts[0]
    assert part.folder == meta.parent
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert part.folder == tmp_path


def test_sizes_come_from_the_beginning_of_a_file(tmp_path, preparer, monkeypatch):
    """A JPEG is not read whole, unless its size stands far behind its beginning."""
    from PIL import Image

    pixels = np.random.default_rng(0).integers(0, 256, (300, 700, 3), dtype=np.uint8)
    Image.fromarray(pixels).save(tmp_path / "plain.jpg", quality=95)
    Image.fromarray(pixels).save(tmp_path / "profile.jpg", quality=95, icc_profile=b"x" * 100_000)
    Image.fromarray(pixels).save(tmp_path / "plain.png")
    records = [
        {"image": name, "conversations": turns("What?", "Noise.")} for name in ("plain.jpg", "profile.jpg", "plain.png")
    ]
    source = AnnotationSource("a", Lines(write_lines(tmp_path / "a.jsonl", records)), 3, tmp_path)
    peeks = [source.peek(number).images[0] for number in range(3)]
    assert [len(peek) for peek in peeks] == [1 << 16, 1 << 16, os.path.getsize(tmp_path / "plain.png")]
    with pytest.raises(UserError):
        image_size(peeks[1], "profile")
    whole = []
    read = AnnotationSource.__getitem__
    monkeypatch.setattr(
        AnnotationSource, "__getitem__", lambda self, number: whole.append(number) or read(self, number)
    )
    sizes = load_index(source, preparer).sizes
    assert whole == [1]
    assert (sizes == sizes[0]).all()
    assert sizes[0, 1] == 2 + 1


def test_a_picture_that_was_changed_after_measuring_is_named(tmp_path, preparer):
    from PIL import Image

    meta = write_meta(tmp_path, scale=0.2)
    config = MixtureConfig(rows=1, tokens=2000, tiles=40, weights={"captions": 1.0})
    assert Batches(open_meta(meta), preparer, config, 0)[0].bad == ()
    Image.new("RGB", (30, 30)).save(tmp_path / "images/photos/astronaut.jpg")
    numbered = Batches(open_meta(meta), preparer, config, 0)
    bad = [error for number in range(numbered.count(0)) for error in numbered[number].bad]
    assert bad
    for error in bad:
        assert error.reason == "changed"
        assert re.search(r"captions.jsonl:\d: has \d+ tokens and 1 tiles, but had \d+ and [2-5] when", str(error))


GOOD = {"image": "a.jpg", "conversations": turns("<image>\nWhat?", "That.")}


@pytest.mark.parametrize(
    ("record", "reason", "message"),
    [
        (b'{"image": ', "json", "not valid JSON: Expecting value: line 1 column 11"),
        (b"", "json", "the line is empty"),
        (b"\xff\xfe{}", "json", "not valid JSON: .*utf-8"),
        (b"[" * 100_000, "json", "not valid JSON: "),
        (b"[]", "type", "must be a JSON object, got a list"),
        ({"image": "a.jpg"}, "type", "conversations: must be a list, got nothing"),
        ({"conversations": {}}, "type", "conversations: must be a list, got an object"),
        ({"conversations": ["?"]}, "type", r"conversations\[0\]: must be an object, got text"),
        (
            {"conversations": [{"from": "robot", "value": "?"}]},
            "type",
            r"conversations\[0\].from: must be .*got 'robot'",
        ),
        ({"conversations": [{"from": [], "value": "?"}]}, "type", r"conversations\[0\].from: must be .*got \[\]"),
        ({"conversations": [{"from": "human"}]}, "type", r"conversations\[0\].value: must be text, got nothing"),
        ({"conversations": turns("?", 3)}, "type", r"conversations\[1\].value: must be text, got a number"),
        ({"conversations": turns("?", "\ud800")}, "type", r"conversations\[1\].value: is not valid Unicode: '\\ud800'"),
        ({"conversations": []}, "turns", "conversations: the last turn must be an answer"),
        ({"conversations": turns(system="s")}, "turns", "conversations: the last turn must be an answer"),
        ({"conversations": turns("?", "!", "?")}, "turns", "conversations: the last turn must be an answer"),
        ({"conversations": turns("?", "!")[::-1]}, "turns", r"conversations\[0\].from: expected 'human', got 'gpt'"),
        (
            {"conversations": turns("?", "!") + turns(system="s")},
            "turns",
            r"conversations\[2\].from: expected 'human', got 'system'",
        ),
        (
            {"conversations": turns("?", "!", "?", " \n")},
            "empty answer",
            r"conversations\[3\].value: the answer is empty",
        ),
        ({**GOOD, "image": ["a.jpg", "a.jpg"]}, "marks", r"conversations: 1 <image> mark\(s\) for 2 image\(s\)"),
        ({**GOOD, "image": None}, "marks", r"conversations: 1 <image> mark\(s\) for 0 image\(s\)"),
        ({"conversations": turns("<image><image>", "!"), "image": "a.jpg"}, "marks", "2 <image> mark"),
        ({**GOOD, "image": 7}, "type", "image: must be text, got a number"),
        ({**GOOD, "image": [False]}, "type", r"image\[0\]: must be text, got a truth value"),
        ({**GOOD, "video": "a.mp4"}, "video", "video: a record of images and a video cannot be read"),
        ({**GOOD, "image": "b.jpg"}, "missing", "image: 'b.jpg' cannot be read from .*: No such file"),
        ({**GOOD, "image": "sub"}, "missing", "image: .*sub is not a file"),
        ({**GOOD, "image": "."}, "missing", "is not a file"),
        ({**GOOD, "image": "pipe"}, "missing", "image: .*pipe is not a file"),
        ({**GOOD, "image": "a.jpg\0"}, "missing", "image: .* cannot be read .*null"),
        ({**GOOD, "image": "x" * 5000}, "missing", "image: .* cannot be read .*too long"),
        ({**GOOD, "image": "../out.jpg"}, "outside", "image: ../out.jpg lies outside of the source's root"),
        ({**GOOD, "image": "/etc/passwd"}, "outside", "image: /etc/passwd lies outside"),
        ({**GOOD, "image": "link.jpg"}, "outside", "image: link.jpg lies outside"),
        ({**GOOD, "image": "away/out.jpg"}, "outside", "image: away/out.jpg lies outside"),
        ({**GOOD, "image": "s3://bucket/a.jpg"}, "outside", "image: s3://bucket/a.jpg is an address"),
        ({**GOOD, "image": "empty.jpg"}, "empty file", "image 0: cannot read this image: the file is empty"),
        ({**GOOD, "image": "text.jpg"}, "image", "image 0: cannot read this image: not an image"),
    ],
)
def test_bad_records_name_line_and_field(tmp_path, preparer, png, record, reason, message):
    root = tmp_path / "images"
    (root / "sub").mkdir(parents=True)
    (root / "a.jpg").write_bytes(png(30, 30))
    (root / "empty.jpg").touch()
    (root / "text.jpg").write_text("no picture")
    os.mkfifo(root / "pipe")
    (tmp_path / "out.jpg").write_bytes(png(30, 30))
    (root / "link.jpg").symlink_to(tmp_path / "out.jpg")
    (root / "away").symlink_to(tmp_path)
    good = json.dumps(GOOD).encode()
    bad = record if isinstance(record, bytes) else json.dumps(record).encode()
    (tmp_path / "a.jsonl").write_bytes(b"\n".join([good, bad, good]))
    (tmp_path / "meta.json").write_text(json.dumps({"a": {"root": "images", "annotation": "a.jsonl"}}))
    measured = load_index(open_meta(tmp_path / "meta.json"), preparer)
    again = load_index(open_meta(tmp_path / "meta.json"), preparer)  # from its file
    for index in (measured, again, load_index(open_meta(tmp_path / "meta.json"), preparer, again=True)):
        assert list(index.bad) == [1]
        assert index.task_ids.tolist() == [0, BAD, 0]
        assert index.sizes[1].tolist() == [0, 0]
        assert str(index.bad[1]) == str(measured.bad[1])
    error = pickle.loads(pickle.dumps(measured.bad[1]))
    assert re.search(message, str(error))
    assert (error.place, error.reason) == (f"{tmp_path}/a.jsonl:2", reason)
    assert str(error) == f"{error.place}: {error.detail}"
    assert "\n" not in str(error)


def test_odd_records_that_are_good():
    record = parse(
        '\ufeff{"conversations": [{"from": "human", "value": ""}, {"from": "gpt", "value": "<image>"}]}'.encode(), "x"
    )
    assert record == Record((Turn("user", ""), Turn("assistant", "<image>")))
    for nothing in ("", [], None):
        assert (
            parse(
                json.dumps({"image": nothing, "video": nothing, "conversations": turns("?", "!")}).encode(), "x"
            ).images
            == ()
        )
    assert parse(json.dumps({"image": ["a"], "conversations": turns("?", "!")}).encode(), "x").images == ("a",)
    system = parse(json.dumps({"conversations": turns("?", "!", system="<image>")}).encode(), "x")
    assert system.turns[0] == Turn("system", "<image>")


_LEAF = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.sampled_from(["human", "gpt", "<image>"])
)
_JSON = st.recursive(_LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3))
_TURN = st.fixed_dictionaries(
    {}, optional={"from": st.sampled_from(["human", "gpt", "system"]) | _JSON, "value": _JSON}
)
_RECORD = st.fixed_dictionaries(
    {}, optional={"image": _JSON, "video": _JSON, "conversations": st.lists(_TURN | _JSON, max_size=4) | _JSON}
)


@settings(max_examples=60, derandomize=True)
@given((_RECORD | _JSON).map(json.dumps).map(str.encode) | st.binary())
def test_whatever_a_line_holds_it_is_a_record_or_a_bad_one(line):
    bad = None
    try:
        assert parse(line, "a.jsonl:1").turns[-1].role == "assistant"
    except RecordError as error:
        bad = error
    assert bad is None or (str(bad).startswith("a.jsonl:1: ") and bad.reason in get_args(Reason))


ENTRY = {"root": "images", "annotation": "a.jsonl"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "meta.json: not valid JSON: "),
        ("[]", "meta.json: must be a JSON object"),
        ("{}", "meta.json: must be a JSON object"),
        ('{"a": {}, "a": {}}', "meta.json: not valid JSON: 'a' stands there twice"),
        ({"a": 1}, "meta.json: a: must be an object"),
        ({"a": {"root": "x"}}, "meta.json: a.annotation: required field is missing"),
        ({"a": {**ENTRY, "repeat_times": 2}}, r"a.repeat_times: unknown field \(did you mean 'repeat_time'\?\)"),
        (
            {"a": {**ENTRY, "repeat_time": 1.5}},
            "meta.json: a.repeat_time: must be a fraction below 1 or a whole number",
        ),
        ({"a": {**ENTRY, "repeat_time": 0}}, "a.repeat_time: must be"),
        ({"a": {**ENTRY, "repeat_time": -1}}, "a.repeat_time: must be"),
        ({"a": {**ENTRY, "repeat_time": "2"}}, "a.repeat_time: .*number"),
        ({"a": {**ENTRY, "repeat_time": True}}, "a.repeat_time: .*number"),
        (
            {"a": {**ENTRY, "repeat_time": 0.3}},
            r"a.annotation: .*a.jsonl has 3 line\(s\) times repeat_time 0.3: nothing",
        ),
        ({"a": {**ENTRY, "data_augment": 1}}, "a.data_augment: .*bool"),
        ({"a": {**ENTRY, "length": 4}}, r"a.length: is 4, but .*a.jsonl has 3 line\(s\)"),
        ({"a": {**ENTRY, "max_dynamic_patch": 0}}, "a.max_dynamic_patch: must be at least 1, got 0"),
        ({"a": {**ENTRY, "root": "s3://bucket/x"}}, "a.root: s3://bucket/x is an address"),
        ({"a": {**ENTRY, "annotation": "s3://bucket/x.jsonl"}}, "a.annotation: s3://bucket/x.jsonl is an address"),
        ({"a": {**ENTRY, "annotation": "a.csv"}}, "a.annotation: must be a .jsonl or .json file, got 'a.csv'"),
        ({"a": {**ENTRY, "annotation": "meta.json"}}, r"a.annotation: .*meta.json: must be a JSON list of records"),
        ({"a": {**ENTRY, "annotation": "b.jsonl"}}, "a.annotation: .*b.jsonl: cannot be read: No such file"),
        ({"a": {**ENTRY, "annotation": "empty.jsonl"}}, r"a.annotation: .*empty.jsonl has 0 line\(s\): nothing"),
    ],
)
def test_mistakes_in_meta_files(tmp_path, content, message):
    write_lines(tmp_path / "a.jsonl", [GOOD] * 3)
    (tmp_path / "empty.jsonl").write_text("\n\n")
    meta = tmp_path / "meta.json"
    meta.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message):
        open_meta(meta)
    with pytest.raises(UserError, match=r"none.json: cannot be read: No such file"):
        read_meta(tmp_path / "none.json")


@pytest.mark.parametrize(("lines", "share", "kept"), [(3, 0.5, 1), (10, 0.3, 3), (7, 0.99, 6), (50, 0.58, 28)])
def test_a_share_keeps_the_first_lines(tmp_path, lines, share, kept):
    write_lines(
        tmp_path / "a.jsonl", [{**GOOD, "image": None, "conversations": turns(str(i), "!")} for i in range(lines)]
    )
    (tmp_path / "m.json").write_text(json.dumps({"a": {**ENTRY, "repeat_time": share, "length": lines}}))
    source = open_meta(tmp_path / "m.json")
    assert len(source) == kept == int(lines * share)
    assert [source[i].turns[0].text for i in range(kept)] == [str(i) for i in range(kept)]
    assert source.weights == {"a": 1.0}


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n \n\n"])
def test_lines_are_those_of_the_file(tmp_path, end, monkeypatch):
    monkeypatch.setattr("vlm_jax.data.formats.lines._CHUNK", 7)
    rng = np.random.default_rng(0)
    texts = ["", "x" * 7, *("é" * int(n) for n in rng.integers(0, 20, 40)), "last"]
    path = tmp_path / "a.txt"
    path.write_bytes(("\n".join(texts) + end).encode())
    lines = Lines(path)
    assert [lines[i].decode() for i in range(len(lines))] == texts
    again = pickle.loads(pickle.dumps(lines))
    assert [again[i] for i in range(len(again))] == [lines[i] for i in range(len(lines))]


def test_a_million_lines_are_found_quickly(tmp_path):
    path = tmp_path / "a.jsonl"
    line = json.dumps(GOOD).encode() + b"\n"
    path.write_bytes(line * 1_000_000)
    began = time.monotonic()
    lines = Lines(path)
    assert len(lines) == 1_000_000
    assert lines[999_999] + b"\n" == line
    assert time.monotonic() - began < 10  # it takes about a tenth of a second
