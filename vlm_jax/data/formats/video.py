"""Frames of a video as image files: from a folder of them, an animation that Pillow reads, or what FFmpeg reads.

A frame that comes out of a decoder is handed on as an uncompressed PPM file, which costs a copy of its pixels and lets
everything behind it treat frames as the pictures that they are. FFmpeg comes with PyAV: `pip install 'vlm_jax[video]'`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from vlm_jax.data.conversation import RecordError
from vlm_jax.data.formats.root import Root, natural_order
from vlm_jax.data.images import DAMAGED, to_rgb
from vlm_jax.errors import UserError

Clip = tuple[float, float]
"""A part of a video: start and end in seconds, the end exclusive."""

MAX_MEGAPIXELS = 40.0
"""Videos with larger frames are refused (8K has 33 million pixels): a conversation holds all of its frames at once."""

_PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm")
_ANIMATIONS = (".gif", ".webp", ".png", ".apng")

# Containers of moving pictures alone: playlists and the like could name files and addresses anywhere.
_CONTAINERS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,flv,ogg,asf"


class Video(Protocol):
    """An opened video."""

    def count(self) -> int:
        """Frames that there are in the clip, as far as the file's header tells."""
        ...

    def header(self) -> bytes:
        """The beginning of an image file from which a frame's size can be read."""
        ...

    def read(self, choose: Callable[[int], Sequence[int]]) -> list[bytes]:
        """Frames as image files; `choose` gives their ascending numbers when it is told how many there really are."""
        ...


@contextlib.contextmanager
def open_video(root: Root, name: str, clip: Clip | None, place: str) -> Iterator[Video]:
    """Opens the video of a record.

    Args:
      root: where it must lie.
      name: of a folder of image files in their natural order, an animated GIF, PNG or WebP, or a video file.
      clip: the part to look at.
      place: the record, for errors.

    Raises:
      RecordError: it is missing, outside, or cannot be read.
      UserError: PyAV is needed and not installed.
    """
    path = root.find(name, place, "video")
    try:
        if os.path.isdir(path):
            if clip is not None:
                raise ValueError("a folder of frames has no times that a clip could be cut at")
            yield _Folder(root, name, path, place)
            return
        if not os.path.exists(path):
            raise FileNotFoundError(2, os.strerror(2))
        if not os.path.isfile(path):  # a pipe would block
            raise OSError(0, "not a file or folder")
        with (_Animation if path.lower().endswith(_ANIMATIONS) else _Film).open(path, clip) as video:
            yield video
    except UserError:
        raise
    except FileNotFoundError as error:
        root.missing(name, error, place, "video")
    except Exception as error:
        if not isinstance(error, DAMAGED) and not _is_ffmpeg_error(error):
            raise
        reason = " ".join(str(getattr(error, "strerror", None) or error).split()) or type(error).__name__
        raise RecordError(place, "video", f"video: {name}: cannot read this video: {reason}") from None


class _Folder:
    """Its files with the endings of pictures."""

    def __init__(self, root: Root, name: str, path: str, place: str) -> None:
        self._root, self._name, self._place = root, name, place
        files = [entry for entry in os.listdir(path) if entry.lower().endswith(_PICTURES) and not entry.startswith(".")]
        self._files = sorted(files, key=natural_order)
        if not files:
            raise ValueError(f"the folder has no pictures ({', '.join(_PICTURES)})")

    def count(self) -> int:
        return len(self._files)

    def header(self) -> bytes:
        return self._read(0, header=True)

    def read(self, choose: Callable[[int], Sequence[int]]) -> list[bytes]:
        return [self._read(number) for number in choose(len(self._files))]

    def _read(self, number: int, header: bool = False) -> bytes:
        return self._root.read(os.path.join(self._name, self._files[number]), self._place, "video", header)


class _Animation:
    """An animation that Pillow reads."""

    def __init__(self, image: Image.Image, clip: Clip | None) -> None:
        _check_size(*image.size)
        self._image = image
        total = getattr(image, "n_frames", 1)
        self._numbers = range(total) if clip is None else self._within(clip, total)

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: str, clip: Clip | None) -> Iterator[Video]:
        with Image.open(path) as image:
            yield cls(image, clip)

    def count(self) -> int:
        return len(self._numbers)

    def header(self) -> bytes:
        return _ppm_header(*self._image.size)

    def read(self, choose: Callable[[int], Sequence[int]]) -> list[bytes]:
        found = []
        for number in choose(len(self._numbers)):
            self._image.seek(self._numbers[number])
            try:
                found.append(_ppm(np.asarray(to_rgb(self._image.copy(), f"frame {number}"))))
            except UserError as error:
                raise ValueError(error) from None
        return found

    def _within(self, clip: Clip, total: int) -> list[int]:
        times, now = [], 0  # milliseconds
        for number in range(total):
            self._image.seek(number)
            self._image.load()  # of a WebP, only this tells how long a frame lasts
            times.append(now / 1000)
            now += round(self._image.info.get("duration", 0))
        return _inside(times, clip, now / 1000)


class _Film:
    """A file that FFmpeg reads. A frame is what is shown at its time, in that order, whatever order it is stored in."""

    def __init__(self, container: Any, clip: Clip | None) -> None:
        if not container.streams.video:
            raise ValueError("it has no pictures")
        self._container, self._clip = container, clip
        self._stream = container.streams.video[0]
        self._stream.codec_context.thread_count = 1  # the records are what is read in parallel
        self._size = self._stream.codec_context.width, self._stream.codec_context.height
        _check_size(*self._size)

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: str, clip: Clip | None) -> Iterator[Video]:
        try:
            import av
        except ImportError:
            raise UserError("reading videos needs PyAV: pip install 'vlm_jax[video]' (or pip install av)") from None
        # A file object and no path: FFmpeg then takes it for nothing else than a file.
        with Path(path).open("rb") as file:
            options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "none"}
            with av.open(file, options=options) as container:
                yield cls(container, clip)

    def count(self) -> int:
        frames = self._stream.frames
        if self._clip is None:
            return frames or len(self._times()[0])
        rate, seconds = self._stream.average_rate, self._seconds()
        if not rate or not seconds:
            return len(_inside(self._seconds_of(self._times()[0]), self._clip, seconds))
        start, end = self._clip
        if start >= seconds:
            return len(_inside([], self._clip, seconds))
        return max(1, int((min(end, seconds) - start) * float(rate)))

    def header(self) -> bytes:
        return _ppm_header(*self._size)

    def read(self, choose: Callable[[int], Sequence[int]]) -> list[bytes]:
        times, keys = self._times()
        if not times:
            raise ValueError("it has no frames")
        numbers = range(len(times))
        if self._clip is not None:
            numbers = _inside(self._seconds_of(times), self._clip, self._seconds())
        wanted = [times[numbers[number]] for number in choose(len(numbers))]
        found = self._decoded(wanted, keys) or self._decoded(wanted, [])
        if found is None:
            raise ValueError("frames that its index names cannot be decoded")
        return [found[time] for time in wanted]

    def _decoded(self, wanted: Sequence[int], keys: Sequence[int]) -> dict[int, bytes] | None:
        """The frames at some times, jumping to the key frames before them; None where a jump went too far."""
        found: dict[int, bytes] = {}
        self._container.seek(0, backward=True)
        frames, now = self._container.decode(self._stream), None
        for time in sorted(set(wanted)):
            key = max((key for key in keys if key <= time), default=None)
            if key is not None and (now is None or key > now):
                self._container.seek(key, stream=self._stream, backward=True)
                frames = self._container.decode(self._stream)
            for frame in frames:
                now = frame.pts if frame.pts is not None else now
                if frame.pts == time:
                    found[time] = _ppm(_upright(frame))
                    break
                if frame.pts is not None and frame.pts > time:
                    return None
            else:
                return None
        return found

    def _times(self) -> tuple[list[int], list[int]]:
        """When every frame is shown, and when every key frame, in the stream's units; nothing is decoded for it."""
        times, keys = [], []
        self._container.seek(0, backward=True)
        for packet in self._container.demux(self._stream):
            if packet.pts is None or packet.is_discard or packet.is_corrupt:
                continue
            times.append(packet.pts)
            if packet.is_keyframe:
                keys.append(packet.pts)
        return sorted(set(times)), sorted(set(keys))

    def _seconds_of(self, times: Sequence[int]) -> list[float]:
        """Seconds from the first frame."""
        return [float((time - times[0]) * self._stream.time_base) for time in times]

    def _seconds(self) -> float:
        """How long it is, or 0 where the file does not say."""
        if self._stream.duration:
            return float(self._stream.duration * self._stream.time_base)
        return (self._container.duration or 0) / 1e6


def _inside(times: Sequence[float], clip: Clip, seconds: float) -> list[int]:
    """Numbers of the frames in a clip."""
    found = [number for number, time in enumerate(times) if clip[0] <= time < clip[1]]
    if not found:
        raise ValueError(f"no frame between {clip[0]:g} and {clip[1]:g} seconds (clip); it is {seconds:g} seconds long")
    return found


def _upright(frame: Any) -> np.ndarray:
    pixels = frame.to_ndarray(format="rgb24")
    return np.rot90(pixels, round(frame.rotation / 90)) if frame.rotation else pixels


def _check_size(width: int, height: int) -> None:
    if not 0 < width * height <= MAX_MEGAPIXELS * 1e6:
        raise ValueError(f"frames of {width} x {height} pixels; the limit is {MAX_MEGAPIXELS:g} megapixels")


def _ppm_header(width: int, height: int) -> bytes:
    return b"P6\n%d %d\n255\n" % (width, height)


def _ppm(pixels: np.ndarray) -> bytes:
    height, width, _ = pixels.shape
    return _ppm_header(width, height) + np.ascontiguousarray(pixels).tobytes()


def _is_ffmpeg_error(error: Exception) -> bool:
    return type(error).__module__.startswith("av.")
