import base64
import dataclasses
import html.parser
import io
import json
import re

import numpy as np
import pytest
from PIL import Image

from tests.data.bad_records import write_bad_meta
from tests.data.text.test_sentencepiece_files import MODELS, internlm2, phi3, train
from tests.meta_fixture import turns, write_lines, write_meta
from vlm_jax.data import show
from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.formats.meta import open_meta
from vlm_jax.data.images import decode_image
from vlm_jax.data.inspection.expected import expected_packing
from vlm_jax.data.inspection.pieces import pieces_of, visible
from vlm_jax.data.inspection.show_page import choose, render
from vlm_jax.data.inspection.survey import survey
from vlm_jax.data.sources import MemorySource
from vlm_jax.data.text.templates import TEMPLATES
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.errors import UserError

EVIL = '<script>alert("1")</script>" onload="x <b>&amp;</b> \u202e'


class Page(html.parser.HTMLParser):
    """A page taken apart: every element with its attributes and its own text, in order."""

    VOID = ("meta", "img", "line", "rect", "br", "link")

    def __init__(self, text):
        super().__init__()
        self.text, self.elements, self._open = text, [], []
        self.feed(text)
        assert not self._open

    def handle_starttag(self, tag, attributes):
        element = {"tag": tag, "text": "", **dict(attributes)}
        self.elements.append(element)
        if tag not in self.VOID:
            self._open.append(element)

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self._open.pop()["tag"] == tag

    def handle_data(self, data):
        if self._open:
            self._open[-1]["text"] += data

    def of(self, **wanted):
        return [e for e in self.elements if all((e.get(key) or "") == value for key, value in wanted.items())]

    def pieces(self):
        return [e for e in self.elements if e["tag"] == "i" and (e.get("title") or "").startswith("id ")]


def page_of(source, preparer, samples=50, rows=50, seed=0, **shape):
    index = survey(source, preparer).index
    packing, index = expected_packing(source, index, preparer.max_tokens, seed=seed, **shape)
    text = render(source, preparer, index, packing, lengths="this", samples=samples, rows=rows, seed=seed)
    return Page(text), packing, index


@pytest.fixture(scope="module")
def meta(tmp_path_factory):
    return write_meta(tmp_path_factory.mktemp("show"), 0.2)


def test_a_sample_shows_every_token_with_its_weight(preparer, png):
    answer = "It is <ref>a cat</ref><box>[[1, 2, 300, 400]]</box>, Zürich 猫 👩‍🚀.\nYes."
    record = Conversation(
        (Turn("user", "Two: <image> and <image>"), Turn("assistant", answer)), (png(90, 20), png(20, 20))
    )
    preparer = dataclasses.replace(preparer, loss_reduction="square")
    example = preparer(record)
    page, *_ = page_of(MemorySource([record]), preparer)
    shown = page.pieces()

    ids = []
    for piece in shown:
        count = re.search(r"× ([\d,]+)$", piece["text"])
        own = [int(i) for i in re.match(r"id ([\d, ]+) ·", piece["title"])[1].split(", ")]
        ids += own * (int(count[1].replace(",", "")) if "image" in (piece.get("class") or "") else 1)
    assert ids == example.tokens.tolist()
    weights = {float(f"{weight:.3g}") for weight in np.unique(example.loss_weights) if weight}
    learned = [piece for piece in shown if "learned" in (piece.get("class") or "")]
    assert {float(re.search(r"weight ([\d.e-]+)", piece["title"])[1]) for piece in learned} == weights
    said = "".join(piece["text"] for piece in learned)
    assert said == visible(answer) + "<|im_end|>"
    everything = "".join(piece["text"] for piece in shown)
    wide, small = "<img><IMG_CONTEXT> × 6</img>", "<img><IMG_CONTEXT> × 2</img>"  # three tiles, one tile
    assert f"<|im_start|>user↵\nTwo: {wide} and {small}<|im_end|>" in everything
    controls = [piece["text"] for piece in shown if "control" in (piece.get("class") or "")]
    assert controls.count("<img>") == 2
    assert controls.count("<|im_end|>") == 3
    positions = [int(re.search(r"position (\d+)", piece["title"])[1]) for piece in shown]
    assert positions == sorted(positions)


def test_pieces_are_the_tokens(conversations, preparer):
    for conversation in conversations[:20]:
        example = preparer(conversation)
        pieces = pieces_of(example, preparer.tokenizer)
        assert sum(piece.count for piece in pieces) == len(example.tokens)
        starts = np.cumsum([0, *(piece.count for piece in pieces)])[:-1]
        for piece, start in zip(pieces, starts.tolist(), strict=True):
            span = slice(start, start + piece.count)
            assert set(example.loss_weights[span].tolist()) == {piece.weight}
            assert (example.visual[span] >= 0).all() == (piece.kind == "image")
        text = "".join(piece.text for piece in pieces if piece.kind != "image")
        whole = preparer.tokenizer.decode(example.tokens[example.visual < 0].tolist(), skip_special=False)
        assert text == whole


@pytest.mark.parametrize(("layout", "template"), [(internlm2, "internlm2-chat"), (phi3, "phi3")])
def test_pieces_of_sentencepiece_keep_their_spaces(layout, template, tmp_path, preparer):
    folder, *_ = layout(tmp_path, lambda name: train(**MODELS[name]))
    preparer = dataclasses.replace(
        preparer, tokenizer=Tokenizer.load(folder), template=TEMPLATES[template], max_tokens=4000
    )
    asked, answer = "is 128  the 猫 dog?\n the 🦓", "the  total dog 上海 x"
    record = Conversation((Turn("system", "a  dog"), Turn("user", asked), Turn("assistant", answer)))
    pieces = pieces_of(preparer(record), preparer.tokenizer)
    assert "".join(piece.text for piece in pieces if piece.weight and piece.kind == "text") == answer
    said = "".join(piece.text for piece in pieces)
    assert f"{asked}{preparer.template.stop}" in said
    assert "猫" in [piece.text.strip() for piece in pieces]


def test_pictures_and_tiles_are_what_the_model_gets(preparer):
    pixels = np.zeros((40, 100, 3), np.uint8)  # few colours, so nothing is lost in encoding
    pixels[:, :50] = [200, 30, 60]
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    box = "<box>[[100, 200, 500, 700]]</box>"
    record = Conversation((Turn("user", "Where?"), Turn("assistant", box)), (file.getvalue(),))
    page, *_ = page_of(MemorySource([record]), preparer)
    pictures = [decoded(element["src"]) for element in page.of(tag="img")]
    np.testing.assert_array_equal(pictures[0], pixels)
    tiles = preparer.layout.cut_tiles(decode_image(file.getvalue(), ""))
    assert len(tiles) == 4  # three in a row and the thumbnail
    for shown, tile in zip(pictures[1:], tiles, strict=True):
        np.testing.assert_array_equal(shown, tile)
    assert [element["alt"] for element in page.of(tag="img")][1:] == ["tile 1", "tile 2", "tile 3", "thumbnail"]
    (rectangle,) = page.of(tag="rect", **{"class": "box"})
    assert [float(rectangle[key]) for key in ("x", "y", "width", "height")] == [100, 200, 400, 500]


def decoded(source):
    kind, data = source.split(",", 1)
    assert kind == "data:image/png;base64"
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))))


def test_rows_add_up(meta, preparer):
    source = open_meta(meta)
    page, packing, index = page_of(source, preparer, samples=2)
    bars = [e for e in page.elements if (e.get("class") or "").startswith("bar")]
    upper = [bar for bar in bars if bar["class"] == "bar"]
    assert len(upper) == len(packing.rows)
    segments = [
        e for e in page.elements if re.fullmatch(r"c\d", e.get("class") or "") and ": " in (e.get("title") or "")
    ]
    shares = [int(re.match(r"flex:(\d+)", e["style"])[1]) for e in segments]
    used = index.sizes[np.concatenate(packing.rows)]
    assert sum(shares) == used.sum()
    free = [int(re.match(r"flex:(\d+)", e["style"])[1]) for e in page.of(tag="i", **{"class": "free"})]
    slots = len(packing.rows) * (packing.tokens + packing.tiles)
    assert sum(free) == slots - used.sum()
    assert {e["title"].rpartition(": ")[0] for e in segments} == {
        source[int(i)].name for i in np.concatenate(packing.rows)
    }


def test_nothing_that_a_record_says_gets_out_of_its_place(preparer, png):
    records = [
        Conversation((Turn("user", EVIL), Turn("assistant", EVIL)), (png(30, 30),), EVIL, EVIL),
        Conversation((Turn("user", "a"), Turn("assistant", "<box>[[1, 2, 3, 4000]]</box>" + EVIL)), (), EVIL, EVIL),
        Conversation((Turn("user", EVIL),), (b"<script>",), EVIL, EVIL),
    ]
    page, *_ = page_of(MemorySource(records, EVIL), preparer)
    assert not page.of(tag="script")
    assert not page.of(tag="b", text="&amp;")
    assert not any("onload" in element for element in page.elements)
    assert "\u202e" not in page.text
    assert "".join(piece["text"] for piece in page.pieces()).count('<script>alert("1")</script>') == 2
    (policy,) = (e["content"] for e in page.of(tag="meta") if e.get("http-equiv") == "Content-Security-Policy")
    assert policy.startswith("default-src 'none'")
    addresses = re.findall(r"(?:src|href|url)\s*[=(]\s*[\"']?([^\"')>]{1,20})", page.text)
    assert all(address.startswith("data:image/") for address in addresses)


def test_independent_questions_are_told_apart(preparer, png):
    said = (Turn("user", "<image>\nOne?"), Turn("assistant", "1"), Turn("user", "Two?"), Turn("assistant", "2"))
    page, *_ = page_of(MemorySource([Conversation(said, (png(30, 30),), independent=True)]), preparer)
    assert [e["text"].split(" (")[0] for e in page.of(tag="u")] == ["question 1", "question 2"]


def test_samples_are_drawn_by_seed_and_the_tasks_take_turns(meta, preparer):
    index = survey(open_meta(meta), preparer).index
    first = choose(index, 8, 0)
    assert sorted(index.task_ids[first].tolist()) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert choose(index, 8, 0) == first
    assert choose(index, 8, 1) != first
    assert sorted(choose(index, 1000, 0)) == list(range(len(index.sizes)))


def test_bad_records_and_long_ones(tmp_path, preparer):
    meta, reasons = write_bad_meta(tmp_path)
    page, *_ = page_of(open_meta(meta), preparer, samples=2)
    told = [e["text"] for e in page.of(tag="b") if ": " in e["text"]]
    assert "outside: 3" in told
    assert "too long: 1" in told
    assert sum(int(text.rpartition(": ")[2]) for text in told) == len(reasons) - 1  # one is found by decoding alone
    assert any("link.jpg" in e["text"] for e in page.of(tag="span"))


def test_a_picture_that_is_cut_off_is_told_where_it_would_stand(tmp_path, preparer):
    meta, reasons = write_bad_meta(tmp_path)
    (line,) = [line for line, reason in reasons.items() if reason == "image"][:1]
    page, *_ = page_of(open_meta(meta), preparer, samples=1000)
    (told,) = page.of(tag="p", **{"class": "error"})
    assert told["text"].startswith("image: image 0: cannot read this image")
    assert page.of(tag="h3", text=f"{tmp_path}/captions.jsonl:{line}")


def test_long_samples_are_shortened(preparer, monkeypatch):
    monkeypatch.setattr("vlm_jax.data.inspection.show_page.MAX_PIECES", 30)
    record = Conversation((Turn("user", "Count."), Turn("assistant", "1, 2, 3, 4, 5. " * 8)))
    page, *_ = page_of(MemorySource([record]), preparer)
    assert len(page.pieces()) == 30
    (rest,) = page.of(tag="u")
    (total,) = (e["text"] for e in page.of(tag="span") if "learned, " in e["text"])
    shown = sum(len(re.match(r"id ([\d, ]+) ·", piece["title"])[1].split(",")) for piece in page.pieces())
    assert rest["text"] == f"… and {int(total.split()[0]) - shown} more tokens"


def test_as_a_command(meta, tmp_path, capsys):
    flags = ["--data", str(meta), "--tile-size", "56", "--max-tiles", "4", "--samples", "3"]
    show.main([*flags, "--out", str(tmp_path / "a/b"), "--loss-reduction", "square"])
    path = tmp_path / "a/b/index.html"
    assert capsys.readouterr().out == f"{path}\n"
    page = Page(path.read_text("utf-8"))
    assert len(page.of(tag="article")) == 3
    assert "weights by square" in page.text
    assert "trained on this very data" in page.text
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--out"):
        show.main([*flags, "--out", str(tmp_path / "file")])
    with pytest.raises(UserError, match="--samples"):
        show.main([*flags, "--out", str(tmp_path), "--samples", "0"])


def test_nothing_good(tmp_path):
    write_lines(tmp_path / "a.jsonl", [{"conversations": turns("x")}] * 3)
    (tmp_path / "meta.json").write_text(json.dumps({"a": {"root": ".", "annotation": "a.jsonl"}}))
    show.main(["--data", str(tmp_path / "meta.json"), "--out", str(tmp_path)])
    text = (tmp_path / "index.html").read_text("utf-8")
    assert "There is no good record" in text
    assert "turns: 3" in text
