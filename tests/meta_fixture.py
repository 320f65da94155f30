"""A tiny data set in InternVL's format: a meta file over four sources of photographs, pages and plain talk."""

import json
from pathlib import Path

import skimage.data
from PIL import ExifTags, Image, ImageDraw

RECORDS = 8
"""Lines of every annotation file."""

PHOTOS = {"astronaut": (640, 480), "coffee": (448, 448), "rocket": (210, 700), "chelsea": (45, 38)}
"""Width and height in pixels. The third is stored lying on its side, with the orientation in its EXIF header."""

PAGES = {"wide": (1100, 260), "tall": (420, 610)}
WORDS = ("red", "blue", "green", "seven", "north", "window", "Zürich", "猫")


def write_meta(folder: Path, scale: float = 1.0, **changes: dict) -> Path:
    """Writes the data set under `folder` and returns the path of its meta file.

    Sources: `captions` (one image; half of the records without a mark, one with a system text, one of two questions;
    `data_augment`), `pages` (one image, `repeat_time` 2, `max_dynamic_patch` 2), `pairs` (two or three images) and
    `talk` (text alone, `repeat_time` 0.5, a root that does not exist).

    Args:
      folder: made if need be.
      scale: of the pictures' sides.
      changes: fields of a source's entry in the meta file, by its name.
    """
    images = folder / "images"
    (images / "photos").mkdir(parents=True, exist_ok=True)
    (images / "pages").mkdir(exist_ok=True)
    for name, size in PHOTOS.items():
        _write_photo(images / "photos" / f"{name}.jpg", name, _scaled(size, scale))
    for name, size in PAGES.items():
        _write_page(images / "pages" / f"{name}.jpg", _scaled(size, scale))
    records = {
        "captions": [_caption(number) for number in range(RECORDS)],
        "pages": [_page(number) for number in range(RECORDS)],
        "pairs": [_pair(number) for number in range(RECORDS)],
        "talk": [_talk(number) for number in range(RECORDS)],
    }
    entries = {
        "captions": {"root": "images/photos/", "data_augment": True, "repeat_time": 1},
        "pages": {"root": str((images / "pages").absolute()), "repeat_time": 2, "max_dynamic_patch": 2},
        "pairs": {"root": "images", "data_augment": False, "repeat_time": 1},
        "talk": {"root": "nowhere", "repeat_time": 0.5},
    }
    for name, lines in records.items():
        write_lines(folder / f"{name}.jsonl", lines)
        own = {"annotation": f"{name}.jsonl", "data_augment": False, "length": RECORDS}
        entries[name] = {**own, **entries[name], **changes.get(name, {})}
    meta = folder / "meta.json"
    meta.write_text(json.dumps(entries, indent=1))
    return meta


def write_lines(path: Path, records: list) -> Path:
    """Writes records as JSON lines."""
    path.write_text("".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records), "utf-8")
    return path


def turns(*texts: str, system: str = "") -> list[dict[str, str]]:
    """Questions and answers in turn, as the format has them."""
    speakers = ("human", "gpt")
    told = [{"from": "system", "value": system}] if system else []
    return told + [{"from": speakers[number % 2], "value": text} for number, text in enumerate(texts)]


def _caption(number: int) -> dict:
    name = sorted(PHOTOS)[number % len(PHOTOS)]
    question = ("<image>\n" if number % 2 else "") + "What is shown here?"
    texts = [question, f"The photograph is named {name}. " * (1 + number % 3)]
    if number == 3:
        texts += ["Is it in colour?", "Yes."]
    width, height = PHOTOS[name]
    system = "Answer in one sentence." if number == 1 else ""
    return {
        "id": number,
        "image": f"{name}.jpg",
        "width": width,
        "height": height,
        "conversations": turns(*texts, system=system),
    }


def _page(number: int) -> dict:
    name = sorted(PAGES)[number % len(PAGES)]
    word = WORDS[number % len(WORDS)]
    question = f"<image>\nWhich word stands in line {number + 1}?"
    return {"id": number, "image": f"{name}.jpg", "conversations": turns(question, word), "length": 300}


def _pair(number: int) -> dict:
    count = 2 + number % 2
    names = [sorted(PHOTOS)[(number + i) % len(PHOTOS)] for i in range(count)]
    marks = "".join(f"Image-{i + 1}: <image>\n" for i in range(count))
    answer = f"Image-1 shows {names[0]}, Image-{count} shows {names[-1]}."
    images = [f"photos/{name}.jpg" for name in names]
    return {"id": number, "image": images, "conversations": turns(f"{marks}What do they show?", answer)}


def _talk(number: int) -> dict:
    system = "You count." if number % 2 else ""
    return {"id": number, "conversations": turns(f"What is {number} plus one?", str(number + 1), system=system)}


def _scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return tuple(max(1, round(side * scale)) for side in size)


def _write_photo(path: Path, name: str, size: tuple[int, int]) -> None:
    photo = Image.fromarray(getattr(skimage.data, name)()).resize(size)
    exif = Image.Exif()
    if name == "rocket":
        photo = photo.transpose(Image.Transpose.ROTATE_90)
        exif[ExifTags.Base.Orientation] = 6  # to be turned by 90 degrees clockwise
    photo.save(path, quality=90, exif=exif)


def _write_page(path: Path, size: tuple[int, int]) -> None:
    page = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(page)
    step = max(10, size[1] // (len(WORDS) + 1))
    for number, word in enumerate(WORDS):
        draw.text((10, number * step), word if word.isascii() else "-", fill="black", font_size=max(8, step * 0.7))
    page.save(path, quality=90)
