"""A data set with one record of everything that can be wrong with it."""

import json
import struct
import zlib
from pathlib import Path

from tests.meta_fixture import turns, write_meta

LONGEST = 40_000
"""Words of the record that is too long."""


def write_bad_meta(folder: Path, scale: float = 0.3) -> tuple[Path, dict[int, str]]:
    """Adds to the `captions` of `write_meta` a bad record of each kind.

    Returns:
      The meta file, and by its line in `captions.jsonl` the reason for which each is bad.
    """
    meta = write_meta(folder, scale, captions={"length": None})
    photos = folder / "images/photos"
    coffee = (photos / "coffee.jpg").read_bytes()
    (folder / "secret.jpg").write_bytes(coffee)
    (photos / "link.jpg").symlink_to("../../secret.jpg")
    (photos / "empty.jpg").write_bytes(b"")
    (photos / "cut.jpg").write_bytes(coffee[: len(coffee) * 2 // 3])
    (photos / "page.jpg").write_bytes(b"<!doctype html><p>404")
    (photos / "bomb.png").write_bytes(bomb())
    (photos / "folder.jpg").mkdir()
    box = "<ref>a cup</ref><box>[[10, 20, 1300, 400]]</box>"
    lines = [
        ("missing", _record("nowhere.jpg")),
        ("missing", _record("folder.jpg")),
        ("empty file", _record("empty.jpg")),
        ("image", _record("cut.jpg")),  # seen only when it is decoded
        ("image", _record("page.jpg")),
        ("bomb", _record("bomb.png")),
        ("outside", _record("../../secret\x1b[31m.jpg")),
        ("outside", _record("link.jpg")),
        ("outside", _record(str(folder / "secret.jpg"))),
        ("type", _record(7)),
        ("type", {"image": "coffee.jpg", "conversations": "What?"}),
        ("type", ["coffee.jpg"]),
        ("marks", _record("coffee.jpg", question="<image><image>?")),
        ("box", _record("coffee.jpg", answer=box)),
        ("empty answer", _record("coffee.jpg", answer=" \n")),
        ("turns", {"conversations": turns("Who?")}),
        ("too long", {"conversations": turns("Tell.", "word " * LONGEST)}),
        ("json", '{"image": "coffee.jpg", "conv'),
        ("json", ""),
        ("json", '{"a": "\x1b[31mred"}'),
        ("json", "\xff"),
    ]
    path = folder / "captions.jsonl"
    first = path.read_text("utf-8").count("\n") + 1
    with path.open("ab") as file:
        for _, line in lines:
            text = line if isinstance(line, str) else json.dumps(line)
            file.write(text.encode("latin-1") + b"\n")
        file.write(json.dumps(_record("chelsea.jpg")).encode() + b"\r\n")  # a good one, without which nobody knows
    return meta, {first + number: reason for number, (reason, _) in enumerate(lines)}


def bomb(width: int = 50_000, height: int = 50_000) -> bytes:
    """A PNG file of a few bytes that says it has so many pixels."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"\0")) + chunk(b"IEND", b"")


def _record(image, question: str = "<image>\nWhat is it?", answer: str = "Something.") -> dict:
    return {"image": image, "conversations": turns(question, answer)}
