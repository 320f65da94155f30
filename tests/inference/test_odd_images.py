"""Images that nothing like was ever trained on: each gets an answer, or one line that names it, and never a crash."""

import importlib.util
import io
import struct
import time
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageDraw

from tests import tiny
from vlm_jax import chat
from vlm_jax.convert.folders import write_folder
from vlm_jax.errors import UserError


def package_file(package, path):
    (folder,) = importlib.util.find_spec(package).submodule_search_locations
    return (Path(folder) / path).read_bytes()


def encode(image, form="PNG", **options):
    file = io.BytesIO()
    image.save(file, form, **options)
    return file.getvalue()


def noise(width, height, seed=0):
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def screenshot(mode="RGBA"):
    """A window with a title bar and a button, transparent around it."""
    image = Image.new("RGBA", (400, 300), (0, 0, 0, 0))
    draw = ImageDraw.Draw(image)
    draw.rounded_rectangle((20, 20, 380, 280), 12, (250, 250, 250, 255), (120, 120, 120, 255))
    draw.rectangle((20, 20, 380, 50), (40, 90, 200, 255))
    draw.text((30, 28), "Settings", "white")
    draw.rounded_rectangle((280, 230, 360, 260), 6, (40, 90, 200, 128))
    return image.convert(mode)


def palette():
    image = screenshot("RGB").quantize(16)  # black where it was transparent
    return encode(image, transparency=image.getpixel((0, 0)))


def turned_photo():
    exif = Image.Exif()
    exif[0x0112] = 6
    with Image.open(io.BytesIO(package_file("sklearn", "datasets/images/flower.jpg"))) as photo:
        return encode(photo.resize((320, 200)), "JPEG", exif=exif)


def animated():
    return encode(noise(40, 30), "GIF", save_all=True, append_images=[noise(40, 30, k) for k in (1, 2)], loop=0)


ANSWERED = {
    "scan.png": lambda: package_file("skimage", "data/page.png"),
    "handwriting.png": lambda: package_file("skimage", "data/text.png"),
    "photo.jpg": lambda: package_file("sklearn", "datasets/images/china.jpg"),
    "turned.jpg": turned_photo,
    "screenshot.png": lambda: encode(screenshot()),
    "palette.png": palette,
    "grey_alpha.png": lambda: encode(screenshot("LA")),
    "one_pixel.png": lambda: encode(Image.new("RGB", (1, 1), "red")),
    "one_transparent_pixel.gif": lambda: encode(Image.new("P", (1, 1)), "GIF", transparency=0),
    "wide.png": lambda: encode(noise(6000, 200)),
    "high.png": lambda: encode(noise(200, 6000)),
    "line.png": lambda: encode(noise(6000, 1)),
    "animated.gif": animated,
    "cmyk.jpg": lambda: encode(noise(50, 40).convert("CMYK"), "JPEG"),
    "grey16.png": lambda: encode(Image.fromarray(np.arange(6000, dtype=np.uint16).reshape(60, 100) * 10)),
    "one_bit.tiff": lambda: encode(noise(90, 70).convert("1"), "TIFF", compression="group4"),
    "pages.tiff": lambda: encode(noise(30, 30), "TIFF", save_all=True, append_images=[noise(9, 5)]),
    "lossy.webp": lambda: encode(noise(50, 40), "WEBP"),
    "named_wrongly.png": lambda: encode(noise(50, 40), "JPEG"),
    "without_ending": lambda: encode(noise(50, 40), "BMP"),
}


def bomb():
    """A PNG of a few bytes that says it has 2.5 thousand million pixels."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", 50_000, 50_000, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


REFUSED = {
    "truncated.jpg": (lambda: package_file("sklearn", "datasets/images/china.jpg")[:9000], "truncated"),
    "truncated.png": (lambda: encode(noise(300, 300))[:5000], "truncated|broken|not enough"),
    "empty.png": (lambda: b"", "the file is empty"),
    "text.png": (lambda: b"Dear all,\nplease find attached\n", "not an image, or none of the formats"),
    "page.png": (lambda: b"<!DOCTYPE html><html>404</html>", "a web page, not an image"),
    "bomb.png": (bomb, "50000 x 50000 pixels are more than the limit of 200 megapixels"),
    "floats.tiff": (lambda: encode(Image.new("F", (4, 4)), "TIFF"), "its pixels are floats"),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """All these files, and a model folder."""
    folder = tmp_path_factory.mktemp("odd")
    write_folder(folder / "model", tiny.params(), tiny.system(), tiny.tokenizer())
    for name, make in ANSWERED.items():
        (folder / name).write_bytes(make())
    for name, (make, _) in REFUSED.items():
        (folder / name).write_bytes(make())
    (folder / "folder.png").mkdir()
    return folder


@pytest.mark.parametrize("name", ANSWERED)
def test_gets_an_answer(folder, name):
    """The same from a path, from bytes and from an opened image."""
    path = folder / name
    said = tiny.model().generate("Total?", [path], max_new_tokens=4)
    assert said == tiny.model().generate("Total?", [path.read_bytes()], max_new_tokens=4)
    with Image.open(path) as opened:
        assert said == tiny.model().generate("Total?", [opened], max_new_tokens=4)


def test_what_the_model_sees_of_them(folder):
    """Tiles, thumbnail and colours are those of the picture as a person sees it."""

    def tiles(name):
        batch = tiny.model().batch(["Total?"], [[folder / name]])
        return batch.patches[0][batch.tile_segment[0] > 0]

    assert len(tiles("wide.png")) == len(tiles("high.png")) == 5  # four and the thumbnail
    assert len(tiles("one_pixel.png")) == 1
    assert (tiles("one_pixel.png").reshape(-1, 3) == (255, 0, 0)).all()
    assert (tiles("one_transparent_pixel.gif") == 255).all()
    assert (tiles("screenshot.png")[0, 0, :3] == 255).all()  # transparent corners are white
    assert (tiles("palette.png")[0, 0, :3] == 255).all()
    with Image.open(folder / "turned.jpg") as lying:
        upright = Image.fromarray(np.rot90(np.asarray(lying), k=-1).copy())  # which has no EXIF any more
    assert upright.size == (200, 320)
    seen = tiles("turned.jpg")
    np.testing.assert_array_equal(seen, tiny.model().batch(["Total?"], [[upright]]).patches[0, : len(seen)])


@pytest.mark.parametrize("name", [*REFUSED, "folder.png", "missing.png"])
def test_gets_one_clear_line(folder, name):
    path = folder / name
    reason = (
        REFUSED[name][1] if name in REFUSED else {"folder.png": "Is a directory", "missing.png": "No such file"}[name]
    )
    start = time.monotonic()
    with pytest.raises(UserError, match=rf"{name}: cannot read this image: .*({reason})") as error:
        tiny.model().generate("Total?", [path])
    assert time.monotonic() - start < 5
    assert "\n" not in str(error.value)
    if name in REFUSED:
        with pytest.raises(UserError, match="cannot read this image: "):
            tiny.model().generate("Total?", [path.read_bytes()])


@pytest.mark.parametrize("name", ["scan.png", "one_pixel.png", "wide.png", "animated.gif", "cmyk.jpg"])
def test_the_command_answers(folder, name, capsys):
    model, image = f"--model={folder / 'model'}", folder / name
    assert chat.main([model, f"--image={image}", "--prompt=Total?", "--max_new_tokens=4"]) == 0
    assert capsys.readouterr().out == tiny.model().generate("Total?", [image], max_new_tokens=4) + "\n"


@pytest.mark.parametrize("name", [*REFUSED, "folder.png", "missing.png"])
def test_the_command_says_so_before_it_loads_a_model(folder, name):
    with pytest.raises(UserError, match=rf"{name}: cannot read this image: "):
        chat.main(["--model=nowhere", f"--image={folder / name}", "--prompt=Total?"])


@pytest.mark.parametrize("name", [*REFUSED, "folder.png", "missing.png"])
def test_a_conversation_goes_on_after_it(folder, name, capsys, monkeypatch):
    lines = iter([f"/image {folder / name}", "/quit"])
    monkeypatch.setattr("builtins.input", lambda *_: next(lines))
    assert chat.main([f"--model={folder / 'model'}"]) == 0
    assert f"{name}: cannot read this image: " in capsys.readouterr().out
