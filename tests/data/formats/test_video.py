import builtins
import io
import pickle
import sys

import numpy as np
import pytest
from PIL import Image

from tests.meta_fixture import turns, write_lines
from vlm_jax.data.conversation import RecordError
from vlm_jax.data.formats import video as video_module
from vlm_jax.data.formats.annotations import AnnotationSource, open_lines
from vlm_jax.data.formats.frames import FrameRange
from vlm_jax.data.formats.meta import open_meta
from vlm_jax.data.formats.root import Root, natural_order
from vlm_jax.data.formats.video import open_video
from vlm_jax.data.pipeline import Batches
from vlm_jax.data.plan.index import load_index
from vlm_jax.data.plan.mixture import MixtureConfig
from vlm_jax.data.sources import ManySources, draw
from vlm_jax.errors import UserError

FRAMES, RATE = 50, 10
"""Of every video; frame k is grey of level 5 * k."""

FILMS = {
    "h264.mp4": "libx264",
    "mpeg4.mp4": "mpeg4",
    "b.mkv": "libx264",
    "vp9.webm": "libvpx-vp9",
    "old.avi": "mpeg4",
    "t.ts": "libx264",
}
KINDS = [*FILMS, "a.gif", "a.webp", "folder"]


def write_film(path, codec, size=(64, 48), frames=FRAMES):
    av = pytest.importorskip("av")
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=RATE)
        stream.width, stream.height, stream.pix_fmt, stream.gop_size = *size, "yuv420p", 12
        stream.bit_rate = 4_000_000
        stream.codec_context.max_b_frames = 2  # so that frames are stored in another order than shown
        for number in range(frames):
            pixels = np.full((size[1], size[0], 3), 5 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode(None))


def grey(number, size=(20, 30)):
    return Image.new("RGB", size, (5 * number,) * 3)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("videos")
    for name, codec in FILMS.items():
        write_film(folder / name, codec)
    for ending, options in (("gif", {}), ("webp", {"lossless": True})):
        grey(0).save(
            folder / f"a.{ending}",
            save_all=True,
            append_images=[grey(n) for n in range(1, FRAMES)],
            duration=100,
            **options,
        )
    (folder / "folder").mkdir()
    for number in range(FRAMES):
        grey(number).save(folder / "folder" / f"frame_{number}.png")
    (folder / "folder" / "notes.txt").write_text("no frame")
    return folder


def numbers_of(images):
    """Numbers of the frames that some images are."""
    return [round(float(np.asarray(Image.open(io.BytesIO(image)).convert("RGB")).mean()) / 5) for image in images]


@pytest.mark.parametrize("kind", KINDS)
def test_frames_are_those_asked_for(root, kind):
    with open_video(Root(root), kind, None, "x:1") as video:
        assert video.count() == FRAMES
        whole = Image.open(io.BytesIO(video.read(lambda available: [0])[0]))
        assert Image.open(io.BytesIO(video.header())).size == whole.size
        for wanted in ([0, 3, 12, 13, 30, 48], [47], [5, 5, 6], list(range(FRAMES - 1))):
            asked = []
            assert numbers_of(video.read(lambda available, w=wanted, a=asked: a.append(available) or w)) == wanted
            assert asked == [FRAMES]


@pytest.mark.parametrize("kind", KINDS[:-1])
def test_clips_are_in_seconds(root, kind):
    with open_video(Root(root), kind, (1.0, 2.95), "x:1") as video:
        assert video.count() in (19, 20)  # as the file's header allows
        assert numbers_of(video.read(lambda available: [0, available - 1])) == [10, 29]
    with (
        pytest.raises(
            RecordError, match=r"no frame between 9 and 10 seconds \(clip\); it is 5\S* seconds long"
        ) as caught,
        open_video(Root(root), kind, (9.0, 10.0), "x:1") as video,
    ):
        video.count()
    assert caught.value.reason == "video"


def test_folders_have_no_times(root):
    with (
        pytest.raises(RecordError, match="a folder of frames has no times"),
        open_video(Root(root), "folder", (0.0, 1.0), "x:1"),
    ):
        pass


def test_natural_order():
    names = ["f10.png", "f9.png", "f1_2.png", "f1_10.png", "a.png", "F2.png", "007.png", "7.png"]
    assert sorted(names, key=natural_order) == [
        "007.png",
        "7.png",
        "F2.png",
        "a.png",
        "f1_2.png",
        "f1_10.png",
        "f9.png",
        "f10.png",
    ]


def test_a_film_held_upright_comes_upright(root, tmp_path):
    """A telephone stores what it filmed lying on its side, and how to turn it in the track's header."""
    film = bytearray((root / "mpeg4.mp4").read_bytes())
    flat, turned = (b"".join(value.to_bytes(4, "big", signed=True) for value in values) for values in (
        (65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30), (0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30)
    ))  # fmt: skip
    place = film.index(flat, film.index(b"tkhd"))
    film[place : place + 36] = turned
    (tmp_path / "turned.mp4").write_bytes(film)
    with open_video(Root(tmp_path), "turned.mp4", None, "x:1") as video:
        pixels = np.asarray(Image.open(io.BytesIO(video.read(lambda available: [7])[0])))
    assert pixels.shape == (64, 48, 3)


def source_of(root, tmp_path, records, **options):
    path = write_lines(tmp_path / "v.jsonl", records)
    return AnnotationSource("v", open_lines(path), len(records), root, **options)


@pytest.mark.parametrize("kind", KINDS)
def test_a_record_with_a_video(root, tmp_path, preparer, kind):
    record = {"video": kind, "conversations": turns("Look: <video>\nWhat?", "Grey.")}
    source = source_of(root, tmp_path, [record] * 3, frames=FrameRange(4, 6), max_tiles=4, augment=True)
    whole, first = source[1], source.draw(1, (0, 1))
    count = len(whole.images)
    assert 4 <= count <= 6
    marks = "\n".join(f"Frame-{number}: <image>" for number in range(1, count + 1))
    assert whole.turns[0].text == f"Look: {marks}\nWhat?"
    assert numbers_of(whole.images)[0] == (FRAMES // count - 1) // 2  # the middle of the first interval
    assert first == source.draw(1, [0, 1])
    assert first != source.draw(1, (0, 2))
    assert first.turns == whole.turns
    numbers = numbers_of(first.images)
    assert all(
        low <= n < low + FRAMES / count + 1 for n, low in zip(numbers, np.linspace(0, FRAMES, count + 1), strict=False)
    )
    peek = source.peek(1)
    assert len(peek.images) == count
    size = preparer.measure(peek)
    for conversation in (whole, first):
        example = preparer(conversation, draw=(1, 2))
        assert (len(example.tokens), len(example.patches)) == size[:2]
        assert len(example.patches) == count  # one tile each, no thumbnail
    assert pickle.loads(pickle.dumps(source))[1] == whole


def test_marks_of_videos(root, tmp_path):
    def first_texts(*texts, **fields):
        record = {"video": "folder", "conversations": turns(*texts), **fields}
        return [turn.text for turn in source_of(root, tmp_path, [record], frames=FrameRange(2, 2))[0].turns[::2]]

    marks = "Frame-1: <image>\nFrame-2: <image>"
    assert first_texts("<video>\nWhat?", "!") == [f"{marks}\nWhat?"]
    assert first_texts("What?", "!", "Why?", "!") == [f"{marks}\nWhat?", "Why?"]
    assert first_texts("Hello.", "!", "<video>", "!") == ["Hello.", marks]
    assert first_texts("What?", "!", video=None, videos=["folder"]) == [f"{marks}\nWhat?"]
    text = {"conversations": turns("How do I write a <video> tag, or two: <video>?", "<video>")}
    assert source_of(root, tmp_path, [text])[0].turns[0].text.count("<video>") == 2


@pytest.mark.parametrize(
    ("fields", "reason", "message"),
    [
        ({"video": "none.mp4"}, "missing", "video: 'none.mp4' cannot be read from .*: No such file"),
        ({"video": "bad.mp4"}, "video", "video: bad.mp4: cannot read this video: Invalid data"),
        ({"video": "empty.mp4"}, "video", "video: empty.mp4: cannot read this video: "),
        ({"video": "sound.mp4"}, "video", "video: sound.mp4: cannot read this video: it has no pictures"),
        ({"video": "bad.gif"}, "video", "video: bad.gif: cannot read this video: cannot identify image file"),
        ({"video": "list.m3u8"}, "video", "video: list.m3u8: cannot read this video: "),
        ({"video": "list.mp4"}, "video", "video: list.mp4: cannot read this video: "),
        ({"video": "bare"}, "video", r"video: bare: cannot read this video: the folder has no pictures"),
        ({"video": "../x.mp4"}, "outside", "video: ../x.mp4 lies outside"),
        ({"video": "leak"}, "outside", "video: leak/1.png lies outside"),
        ({"video": "http://x/y.mp4"}, "outside", "video: http://x/y.mp4 is an address"),
        ({"video": "a\0.mp4"}, "missing", "video: .* cannot be read"),
        ({"video": "pipe.mp4"}, "video", "video: pipe.mp4: cannot read this video: not a file"),
        ({"video": 1}, "type", "video: must be text, got a number"),
        ({"video": "", "videos": ["a", "b"]}, "video", "videos: a record of 2 videos cannot be read"),
        ({"image": "a.png"}, "video", "video: a record of images and a video"),
        ({"clip": [0, 1]}, "type", "clip: must be {"),
        ({"clip": {"start": 0}}, "type", "clip.end: must be seconds, got None"),
        ({"clip": {"start": -1, "end": 2}}, "type", "clip.start: must be seconds, got -1"),
        ({"clip": {"start": 0, "end": float("nan")}}, "type", "clip.end: must be seconds, got nan"),
        ({"clip": {"start": 2, "end": 2}}, "video", "clip: starts at 2 and ends at 2 seconds"),
        ({"conversations": turns("<video><video>", "!")}, "marks", r"2 <video> mark\(s\) for 1 video"),
        ({"conversations": turns("<image>", "!")}, "marks", r"1 <image> mark\(s\) for 0 image"),
    ],
)
def test_mistakes(root, tmp_path, fields, reason, message):
    import os

    av = pytest.importorskip("av")
    folder = tmp_path / "root"
    (folder / "bare").mkdir(parents=True)
    (folder / "leak").mkdir()
    (folder / "leak" / "1.png").symlink_to(root / "folder" / "frame_1.png")
    (folder / "good.mp4").write_bytes((root / "h264.mp4").read_bytes())
    (folder / "bad.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    (folder / "bad.gif").write_bytes(b"GIF")
    (folder / "empty.mp4").touch()
    playlist = f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\n{root}/t.ts\n#EXT-X-ENDLIST\n"
    for name in ("list.m3u8", "list.mp4"):
        (folder / name).write_text(playlist)
    os.mkfifo(folder / "pipe.mp4")
    with av.open(str(folder / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=44100)
        sound = av.AudioFrame.from_ndarray(np.zeros((2, 1024), np.float32), "fltp", "stereo")
        sound.sample_rate = 44100
        container.mux(stream.encode(sound))
        container.mux(stream.encode(None))
    record = {"video": "good.mp4", "conversations": turns("?", "!"), **fields}
    with pytest.raises(RecordError, match=message) as caught:
        source_of(folder, tmp_path, [record])[0]
    assert caught.value.reason == reason
    assert str(caught.value).startswith(f"{tmp_path}/v.jsonl:1: ")


def test_a_film_cut_off_in_the_middle_is_a_bad_record(root, tmp_path):
    (tmp_path / "cut.ts").write_bytes((root / "t.ts").read_bytes()[:9000])
    (tmp_path / "cut.mp4").write_bytes((root / "h264.mp4").read_bytes()[:-3000])
    source = source_of(tmp_path, tmp_path, [{"video": "cut.mp4", "conversations": turns("?", "!")}])
    with pytest.raises(RecordError, match=r"cut.mp4: cannot read this video: "):
        source[0]


def test_large_frames_are_refused(root, tmp_path, monkeypatch):
    monkeypatch.setattr(video_module, "MAX_MEGAPIXELS", 0.0005)
    for kind in ("h264.mp4", "a.gif"):
        with pytest.raises(RecordError, match=r"frames of \d+ x \d+ pixels; the limit is 0.0005 megapixels"):
            source_of(root, tmp_path, [{"video": kind, "conversations": turns("?", "!")}])[0]


def test_without_pyav_it_says_what_to_install(root, tmp_path, monkeypatch):
    source = source_of(root, tmp_path, [{"video": v, "conversations": turns("?", "!")} for v in ("a.gif", "h264.mp4")])
    real = builtins.__import__
    monkeypatch.delitem(sys.modules, "av", raising=False)
    monkeypatch.setattr(
        builtins,
        "__import__",
        lambda name, *a, **k: (_ for _ in ()).throw(ImportError()) if name == "av" else real(name, *a, **k),
    )
    assert source[0].images
    with pytest.raises(UserError, match=r"reading videos needs PyAV: pip install 'vlm_jax\[video\]'") as caught:
        source[1]
    assert not isinstance(caught.value, RecordError)  # it is no fault of the data


def test_meta_files_say_how_many_frames(root, tmp_path, preparer):
    import json

    records = [{"video": "folder", "conversations": turns("<video>\n?", str(n))} for n in range(3)]
    write_lines(tmp_path / "v.jsonl", records)
    entry = {"root": str(root), "annotation": "v.jsonl", "min_num_frame": 3, "max_num_frame": 3}
    (tmp_path / "meta.json").write_text(json.dumps({"v": entry}))
    source = open_meta(tmp_path / "meta.json")
    assert load_index(source, preparer).sizes[:, 1].tolist() == [3, 3, 3]
    assert isinstance(source, ManySources)
    assert numbers_of(draw(source, 2, (1,)).images) != numbers_of(draw(source, 2, (2,)).images)
    entry["min_num_frame"] = 4
    (tmp_path / "meta.json").write_text(json.dumps({"v": entry}))
    with pytest.raises(UserError, match=r"v.min_num_frame: must lie in 1..max_num_frame \(3\), got 4"):
        open_meta(tmp_path / "meta.json")


def test_batches_draw_frames_anew_and_are_still_functions_of_their_number(root, tmp_path, preparer):
    records = [{"video": kind, "conversations": turns("<video>\n?", "!")} for kind in ("folder", "h264.mp4", "a.gif")]
    source = source_of(root, tmp_path, records, frames=FrameRange(3, 5))
    config = MixtureConfig(rows=1, tokens=400, tiles=16)

    def patches(number):
        loaded = Batches(source, preparer, config, seed=0)[number]
        return next(item for item in loaded if hasattr(item, "patches")).patches

    first, second = patches(0), patches(1)
    assert np.array_equal(first, patches(0))
    assert first.any(axis=(2, 3)).sum() == second.any(axis=(2, 3)).sum()  # as many frames
    assert not np.array_equal(np.sort(first, axis=1), np.sort(second, axis=1))  # but others: it is another epoch
