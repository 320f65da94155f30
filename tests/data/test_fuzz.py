"""Whatever stands in a file, it is data or one clear error: no crash, no hang, and nothing lost without being told."""

# ruff: noqa: PT017 - an error is one of two good outcomes, and both are looked at

import io
import json
import struct
import zlib
from collections import Counter
from typing import get_args

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

from tests.data.formats.test_video import grey, write_film
from tests.meta_fixture import turns
from vlm_jax.data.conversation import Conversation, Reason, RecordError, Turn
from vlm_jax.data.formats.annotations import AnnotationSource, open_lines
from vlm_jax.data.formats.open import open_data
from vlm_jax.data.formats.root import Root
from vlm_jax.data.formats.tfds import turns_from_json
from vlm_jax.data.formats.video import open_video
from vlm_jax.data.images import decode_image, image_size
from vlm_jax.data.sources import PeekableSource
from vlm_jax.errors import UserError

# `deadline` is what a hang runs into; examples take milliseconds.
fuzz = settings(
    max_examples=120, deadline=20_000, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture]
)

_WORDS = [
    "human",
    "gpt",
    "user",
    "assistant",
    "system",
    "text",
    "image",
    "<image>",
    "<video>",
    "a.png",
    "a.gif",
    "sub",
    "../x",
    "",
]
_LEAF = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(_WORDS)
_JSON = st.recursive(_LEAF, lambda i: st.lists(i, max_size=3) | st.dictionaries(st.sampled_from(_WORDS), i, max_size=3))


def fields(**known):
    """Objects with some of these fields, mostly of the right kind."""
    some = st.fixed_dictionaries({}, optional={name: st.one_of([kind] * 4 + [_JSON]) for name, kind in known.items()})
    return st.one_of([st.fixed_dictionaries(known)] * 3 + [some])


_PART = fields(type=st.sampled_from(["text", "image", "video"]), text=st.text(max_size=5), index=st.integers(0, 2))
_TEXT = st.sampled_from(["<image>\nWhat?", "That.", "<video>", "?"]) | st.text(max_size=5)
_ROLE = st.sampled_from(["human", "gpt", "system", "user", "assistant"])
_MESSAGE = fields(**{"from": _ROLE, "value": _TEXT, "role": _ROLE, "content": _TEXT | st.lists(_PART, max_size=3)})
_TALK = st.one_of(
    st.lists(_MESSAGE | _LEAF, max_size=4),
    *[
        st.just(turns(text, "That.", system=system))
        for text in ("<image>\nWhat?", "Why?", "<video>?")
        for system in ("", "s")
    ],
    st.lists(_TEXT, min_size=2, max_size=4).map(lambda texts: turns(*texts)),
)
_NAME = st.sampled_from(["a.png", "a.gif", "sub", "none.png", "../a.png"])
_PAIRS = st.lists(fields(user=_TEXT, assistant=_TEXT) | _LEAF | st.just({"user": "?", "assistant": "!"}), max_size=3)
_LAYOUTS = st.one_of(
    fields(conversations=_TALK),
    fields(messages=_TALK),
    fields(texts=_PAIRS),
    fields(question=_TEXT, answer=_TEXT, answers=st.lists(_TEXT, max_size=3)),
)
_MEDIA = st.one_of(
    st.sampled_from([{}, {"video": "a.gif"}, {"images": ["a.png", "a.png"]}]),
    fields(image=_NAME),
    fields(images=st.lists(_NAME, max_size=3)),
    fields(video=_NAME, clip=fields(start=st.floats(0, 3), end=st.floats(2, 5))),
    fields(video=_NAME, image=_NAME, conversations=_TALK, system=_TEXT),
)
_RECORD = st.builds(lambda one, other: {**one, **other}, _LAYOUTS, _MEDIA)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("fuzz")
    (folder / "root" / "sub").mkdir(parents=True)
    grey(3).save(folder / "root" / "a.png")
    grey(3).save(folder / "root" / "sub" / "1.png")
    grey(0).save(folder / "root" / "a.gif", save_all=True, append_images=[grey(n) for n in range(12)], duration=500)
    return folder / "root"


def examined(source, preparer):
    """Every record is prepared or is a bad one, and measuring and loading agree; returns the former."""
    good = []
    for number in range(len(source)):
        try:
            conversation = source[number]
        except RecordError as error:
            assert error.reason in get_args(Reason)
            assert "\n" not in str(error)
            continue
        assert conversation.turns[-1].role == "assistant"
        if isinstance(source, PeekableSource):
            assert source.peek(number).turns == conversation.turns
        good.append(conversation)
        try:
            example = preparer(conversation, draw=(number,))
        except RecordError as error:
            assert error.reason in ("image", "too long", "empty file", "bomb")  # all else was looked at before
        else:
            assert preparer.measure(conversation)[:2] == (len(example.tokens), len(example.patches))
    return good


def test_records(root, tmp_path, preparer):
    seen = Counter()

    @fuzz
    @given(st.lists(st.one_of([_RECORD] * 9 + [_JSON]), max_size=3), st.sampled_from([None, 1]))
    def check(records, indent):
        lines, listed = tmp_path / "a.jsonl", tmp_path / "a.json"
        lines.write_text("".join(json.dumps(record) + "\n" for record in records))
        listed.write_text(json.dumps(records, indent=indent))
        for path in (lines, listed):
            good = examined(AnnotationSource("a", found := open_lines(path), len(found), root), preparer)
            assert len(found) == len(records)
            seen.update(min(len(conversation.images), 2) for conversation in good)

    check()
    assert set(seen) == {0, 1, 2}  # not all of it is nonsense


_PIECES = [b"[", b"]", b"{", b"}", b'"', b"\\", b",", b"\n", b" ", b'{"conversations":[]}', b"\xef\xbb\xbf"]


@fuzz
@given(st.binary(max_size=60) | st.lists(st.sampled_from(_PIECES), max_size=12).map(b"".join))
def test_files_of_any_bytes(tmp_path, preparer, content):
    for name in ("a.json", "a.jsonl", "a.parquet", "a.txt"):
        path = tmp_path / name
        path.write_bytes(content)
        try:
            source = open_data(path)
        except UserError as error:
            assert name in str(error)
        else:
            examined(source, preparer)


@fuzz
@given(st.text(max_size=30) | _JSON.map(json.dumps) | st.lists(_MESSAGE, max_size=3).map(json.dumps))
def test_stored_turns(text):
    try:
        turns = turns_from_json(text.encode(), "record x", 0)
        assert all(isinstance(turn, Turn) for turn in turns)
    except RecordError as error:
        assert (error.place, error.reason in get_args(Reason)) == ("record x", True)


@fuzz
@given(st.lists(_RECORD, min_size=1, max_size=3), st.sampled_from(["image", "images"]), st.booleans())
def test_parquet(root, tmp_path, preparer, records, column, as_text):
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    picture = (root / "a.png").read_bytes()
    rows = []
    for record in records:
        record = {**record, "image": None, "images": None}
        record[column] = {"bytes": picture, "path": None} if column == "image" else [{"bytes": picture}]
        if as_text:
            record["conversations"] = json.dumps(record.get("conversations"))
        rows.append(record)
    try:
        table = pa.Table.from_pylist(rows)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError, ValueError):
        return  # such a file cannot be
    path = tmp_path / "a.parquet"
    try:
        pq.write_table(table, path)
    except pa.ArrowException:
        return
    try:
        source = open_data(path)
    except UserError as error:
        assert "a.parquet: no column holds conversations" in str(error)
    else:
        examined(source, preparer)


def picture(kind):
    stream = io.BytesIO()
    pixels = np.random.default_rng(0).integers(0, 255, (13, 17, 3), dtype=np.uint8)
    frames = {"save_all": True, "append_images": [Image.fromarray(255 - pixels)]} if kind in ("GIF", "WEBP") else {}
    Image.fromarray(pixels).save(stream, kind, **frames)
    return stream.getvalue()


_PICTURES = [picture(kind) for kind in ("PNG", "JPEG", "GIF", "WEBP", "BMP", "TIFF", "PPM")]


@st.composite
def damaged(draw, whole):
    """A file with bytes changed, cut out or put in."""
    data = bytearray(draw(st.sampled_from(whole)))
    for _ in range(draw(st.integers(1, 4))):
        place = draw(st.integers(0, max(0, len(data) - 1)))
        kind = draw(st.sampled_from(["change", "cut", "insert", "end"]))
        if kind == "change" and data:
            data[place] = draw(st.integers(0, 255))
        elif kind == "cut":
            del data[place : place + draw(st.integers(1, 200))]
        elif kind == "insert":
            data[place:place] = draw(st.binary(min_size=1, max_size=20))
        elif kind == "end":
            del data[place:]
    return bytes(data)


@settings(fuzz, max_examples=250)
@given(damaged(_PICTURES) | st.binary(max_size=100))
def test_pictures(preparer, data):
    try:
        size = image_size(data, "x", 1.0)
    except UserError as error:
        assert str(error).startswith("x: cannot read this image: ")
    else:
        try:
            assert decode_image(data, "x", 1.0).size == size
        except UserError as error:
            assert str(error).startswith("x: cannot read this image: ")
    examined([Conversation((Turn("user", "?"), Turn("assistant", "!")), (data,), "x")], preparer)


def bombs():
    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    yield (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(10_000)))
        + chunk(b"IEND", b"")
    )
    yield b"P6\n60000 60000\n255\n" + bytes(100)
    yield b"GIF89a" + struct.pack("<HHBBB", 60000, 60000, 0, 0, 0) + b"," + struct.pack("<HHHHB", 0, 0, 9, 9, 0) + b"\2"


@pytest.mark.parametrize("data", list(bombs()))
def test_bombs(preparer, data, tmp_path):
    with pytest.raises(RecordError, match="megapixels"):
        preparer(Conversation((Turn("user", "?"), Turn("assistant", "!")), (data,), "x"))


@pytest.fixture(scope="module")
def films(tmp_path_factory):
    pytest.importorskip("av")
    folder = tmp_path_factory.mktemp("films")
    for name, codec in (("a.mp4", "libx264"), ("b.mkv", "mpeg4")):
        write_film(folder / name, codec, (32, 16), frames=6)
    grey(0, (8, 6)).save(folder / "c.gif", save_all=True, append_images=[grey(n, (8, 6)) for n in range(1, 6)])
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@settings(fuzz, max_examples=60)
@given(st.data(), st.none() | st.just((0.1, 0.4)))
def test_films(films, tmp_path, data, clip):
    name = data.draw(st.sampled_from(sorted(films)))
    (tmp_path / name).write_bytes(data.draw(damaged([films[name]])))
    try:
        with open_video(Root(tmp_path), name, clip, "x:1") as video:
            count = video.count()
            assert count >= 0
            frames = video.read(lambda available: [0, available - 1])
            assert all(image_size(frame, "x") for frame in frames)
    except RecordError as error:
        assert (error.place, error.reason) == ("x:1", "video")
