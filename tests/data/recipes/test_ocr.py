import json
import shutil
from collections import Counter

import matplotlib
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageDraw, ImageFont

from tests.data.recipes.conftest import load
from vlm_jax.data.conversation import RecordError
from vlm_jax.data.formats.open import open_data
from vlm_jax.data.recipes.ocr import INSTRUCTIONS, conversation
from vlm_jax.data.recipes.ocr_words import Word, words_from_json, words_from_tsv, words_to_json
from vlm_jax.data.recipes.tesseract import read_words, shrink
from vlm_jax.errors import UserError

TSV = """\
level\tpage_num\tblock_num\tpar_num\tline_num\tword_num\tleft\ttop\twidth\theight\tconf\ttext
1\t1\t0\t0\t0\t0\t0\t0\t200\t100\t-1\t
5\t1\t1\t1\t1\t1\t10\t10\t30\t12\t96.5\tSALE
5\t1\t1\t1\t1\t2\t45\t10\t40\t12\t31\t"today
5\t1\t1\t1\t1\t3\t95\t10\t40\t12\t95\t
"""

needs_tesseract = pytest.mark.skipif(
    shutil.which("tesseract") is None, reason="tesseract is not installed (apt-get install tesseract-ocr)"
)


def word(text, left, top, right, bottom):
    return {"text": text, "box": [left, top, right, bottom]}


def draw_page(path, lines, size=(900, 420), height=40):
    image = Image.new("RGB", size, "white")
    font = ImageFont.truetype(f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans.ttf", height)
    for number, text in enumerate(lines):
        ImageDraw.Draw(image).text((40, 40 + 1.4 * height * number), text, font=font, fill="black")
    image.save(path)
    return image


def test_words_of_a_table():
    assert [found.text for found in words_from_tsv(TSV, "a.tsv")] == ["SALE", '"today']
    (sale,) = words_from_tsv(TSV, "a.tsv", min_confidence=90)
    assert sale == Word("SALE", 25, 16, 30, 12)
    with pytest.raises(RecordError, match=r"a.tsv: columns: not a TSV table"):
        words_from_tsv("<html>", "a.tsv")
    with pytest.raises(RecordError, match="row 3"):
        words_from_tsv(TSV.replace("96.5", "high"), "a.tsv")


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("SALE", "words: must be a list"),
        (["SALE"], r"words\[0\]: must be an object"),
        ([{"text": "SALE"}], r"words\[0\].box: must be \[left"),
        ([word("SALE", 10, 10, 5, 20)], r"words\[0\].box: has its corners in the wrong order"),
        ([word("A", 0, 0, 9, 9), word("SALE", 10, 10, True, 20)], r"words\[1\].box: must be"),
        ([word("SALE", 10, 10, float("nan"), 20)], "must be"),
        ([{"text": "SALE", "box": [[0, 0], [0, 0], [0, 0], [0, 0]]}], "has no size"),
        ([{**word("SALE", 0, 0, 9, 9), "confidence": "high"}], r"words\[0\].confidence"),
    ],
)
def test_wrong_words(words, said):
    with pytest.raises(RecordError, match=said):
        words_from_json(words, "w.jsonl:1")


def test_unsure_and_empty_words_are_left_out():
    words = [{**word(text, 0, 0, 9, 9), "confidence": sure} for text, sure in (("a", 0.9), ("b", 0.2), (" ", 0.9))]
    assert [found.text for found in words_from_json([*words, word("c", 0, 0, 9, 9)], "w", 0.5)] == ["a", "c"]


@given(
    st.floats(-900, 900), st.floats(-900, 900), st.floats(1, 300), st.floats(1, 90), st.none() | st.floats(-1.5, 1.5)
)
@settings(max_examples=40)
def test_words_survive_json(x, y, width, height, angle):
    (found,) = words_from_json(json.loads(json.dumps(words_to_json([Word("a", x, y, width, height, angle)]))), "w")
    assert found[1:5] == pytest.approx((x, y, width, height), abs=0.21)
    assert (found.angle is None) == (angle is None)
    if angle is not None:
        assert found.angle == pytest.approx(angle, abs=0.21 / width)


def test_ten_instructions_drawn_by_seed_and_id():
    assert len(set(INSTRUCTIONS)) == 10
    words = [Word("SALE", 10, 10, 40, 12)]
    asked = [conversation(f"{n}", "a.jpg", words, seed=1)["conversations"][0]["value"] for n in range(400)]
    counts = Counter(asked)
    assert {text.removeprefix("<image>\n") for text in counts} == set(INSTRUCTIONS)
    assert min(counts.values()) > 15
    assert [conversation(f"{n}", "b.jpg", words, seed=1)["conversations"][0]["value"] for n in range(400)] == asked
    assert [conversation(f"{n}", "b.jpg", words, seed=2)["conversations"][0]["value"] for n in range(400)] != asked


def test_where_the_picture_stands():
    words = [Word("SALE", 10, 10, 40, 12)]
    found = {
        place: {
            conversation(f"{n}", "a", words, place=place)["conversations"][0]["value"].startswith("<image>")
            for n in range(30)
        }
        for place in ("before", "after", "either")
    }
    assert found == {"before": {True}, "after": {False}, "either": {True, False}}
    after = conversation("1", "a", words, place="after")["conversations"][0]["value"]
    assert after.endswith("\n<image>")


def test_pictures_with_too_little_text_make_no_record():
    assert conversation("1", "a", []) is None
    assert conversation("1", "a", [Word("SALE", 0, 0, 9, 9)], min_words=2) is None
    assert (
        conversation("1", "a", [Word("<image>", 0, 0, 9, 9)]) is None
    )  # a mark that is read would be a second picture


def test_only_large_pictures_are_shrunk():
    assert shrink(Image.new("L", (1000, 500))).size == (768, 384)
    assert shrink(Image.new("L", (50, 3000))).size == (50, 3000)
    assert shrink(Image.new("L", (10000, 400)), 4).size == (100, 4)
    assert shrink(Image.new("L", (1000, 500)), 0).size == (1000, 500)


def test_the_command_with_words(recipe, tmp_path):
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (300, 200)).save(tmp_path / "pictures" / "a.png")
    words = [
        {"id": 7, "image": "a.png", "words": [word("SALE", 10, 10, 90, 30), word("today", 100, 12, 190, 30)]},
        {"image": "b.png", "words": []},
    ]
    (tmp_path / "words.jsonl").write_text("".join(json.dumps(line) + "\n" for line in words))
    code, said = recipe(
        "ocr", "--words=words.jsonl", "--root=pictures", "--out=reading.json", "--save-words=again.jsonl"
    )
    assert code == 0
    assert "1 pictures with text, 1 without" in said
    (record,) = load(tmp_path / "reading-words.jsonl")
    assert record["id"] == "7"
    assert record["conversations"][1]["value"] == "SALE today"
    assert open_data(tmp_path / "reading.json")[0].images[0] == (tmp_path / "pictures" / "a.png").read_bytes()
    (saved,) = load(tmp_path / "again.jsonl")  # a picture without text is nothing to write about
    assert saved["words"] == words[0]["words"]

    (tmp_path / "bad.jsonl").write_text('{"image": 3}\n' + (tmp_path / "words.jsonl").read_text())
    code, _ = recipe("ocr", "--words=bad.jsonl", "--out=reading2.json")
    assert "bad.jsonl:1: image: must be the name" in code
    assert not (tmp_path / "reading2.json").exists()
    code, _ = recipe("ocr", "--words=bad.jsonl", "--out=reading2.json", "--max-bad=0.5")
    assert code == 0
    assert load(tmp_path / "quarantine.jsonl")[0]["line"] == 1


def test_the_command_with_tables(recipe, tmp_path):
    for folder in ("pictures/in", "tables/in"):
        (tmp_path / folder).mkdir(parents=True)
    Image.new("RGB", (200, 100)).save(tmp_path / "pictures/in/a.png")
    (tmp_path / "tables/in/a.tsv").write_text(TSV)
    assert recipe("ocr", "--images=pictures", "--tsv=tables", "--min-confidence=90", "--out=reading.jsonl")[0] == 0
    (record,) = load(tmp_path / "reading.jsonl")
    assert record["image"] == "pictures/in/a.png"
    assert record["conversations"][1]["value"] == "SALE"


def test_a_missing_program_is_told(recipe, tmp_path, monkeypatch):
    draw_page(tmp_path / "a.png", ["x"])
    monkeypatch.setenv("PATH", str(tmp_path))
    code, _ = recipe("ocr", "--images=.", "--out=reading.json")
    assert "tesseract-ocr" in code
    assert "give one of --images" in recipe("ocr", "--images=.", "--words=x", "--out=reading.json")[0]


@needs_tesseract
def test_tesseract_reads_what_is_drawn(tmp_path):
    lines = ["The harbour opens at seven", "and closes at dusk, when", "the last ferry is gone."]
    image = draw_page(tmp_path / "a.png", lines, size=(1800, 840), height=80)
    words = read_words(image, "a.png")
    assert [found.text for found in words] == " ".join(lines).split()
    assert words[0].x == pytest.approx(40 + 75, abs=20)  # in pixels of the picture, not of the one that was shrunk
    assert words[-1].y == pytest.approx(40 + 1.4 * 80 * 2 + 40, abs=25)
    assert words[-1].height == pytest.approx(80, abs=30)
    with pytest.raises(UserError, match="language"):
        read_words(image, "a.png", options=("-l", "none"))


@needs_tesseract
def test_the_command_with_tesseract(recipe, tmp_path, make_records):
    (tmp_path / "pictures").mkdir()
    draw_page(tmp_path / "pictures" / "page2.png", ["Tickets are sold", "on board"])
    draw_page(tmp_path / "pictures" / "page10.png", ["Free entry"], height=60)
    Image.new("RGB", (64, 64), "white").save(tmp_path / "pictures" / "page1.jpg")
    code, said = recipe("ocr", "--images=pictures", "--out=reading.jsonl")
    assert code == 0
    assert "2 pictures with text, 1 without" in said
    records = load(tmp_path / "reading.jsonl")
    assert [record["image"] for record in records] == ["pictures/page2.png", "pictures/page10.png"]
    assert [record["conversations"][1]["value"] for record in records] == ["Tickets are sold on board", "Free entry"]
    first = (tmp_path / "reading.jsonl").read_bytes()

    code, _ = recipe("ocr", "--data=reading.jsonl", "--workers=1", "--out=again.jsonl")  # pictures of a data set
    assert code == 0
    assert [r["conversations"][1] for r in load(tmp_path / "again.jsonl")] == [r["conversations"][1] for r in records]
    assert recipe("ocr", "--images=pictures", "--out=reading.jsonl", "--overwrite", "--workers=1")[0] == 0
    assert (tmp_path / "reading.jsonl").read_bytes() == first
