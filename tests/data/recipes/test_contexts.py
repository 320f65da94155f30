import json

import pytest

from tests.data.recipes.conftest import load
from vlm_jax.data.conversation import RecordError
from vlm_jax.data.recipes.coco import contexts_of_coco
from vlm_jax.data.recipes.contexts import Context, NamedBox, read_context, to_json
from vlm_jax.errors import UserError

IMAGES = [
    {"id": 9, "file_name": "9.jpg", "width": 640, "height": 480},
    {"id": 4, "file_name": "4.jpg", "width": 100, "height": 50},
]
CAPTIONS = {
    "images": IMAGES,
    "annotations": [
        {"id": 3, "image_id": 9, "caption": "A cat\n sleeps. "},
        {"id": 1, "image_id": 9, "caption": "A cat."},
    ],
}
INSTANCES = {
    "images": [*IMAGES, {"id": 1, "file_name": "1.jpg", "width": 5, "height": 5}],
    "categories": [{"id": 17, "name": "cat"}, {"id": 2, "name": "sofa"}],
    "annotations": [
        {"id": 8, "image_id": 9, "category_id": 2, "bbox": [0, 240, 640.4, 240], "iscrowd": 0},
        {"id": 5, "image_id": 9, "category_id": 17, "bbox": [64, 48, 128, 96], "iscrowd": 0},
        {"id": 6, "image_id": 4, "category_id": 17, "bbox": [0, 0, 100, 50], "iscrowd": 1},
    ],
}


def test_coco():
    found = contexts_of_coco(CAPTIONS, INSTANCES)
    boxes = (NamedBox("cat", (0.1, 0.1, 0.3, 0.3)), NamedBox("sofa", (0.0, 0.5, 1.0, 1.0)))
    assert found == [Context("9", "9.jpg", ("A cat.", "A cat sleeps."), boxes)]
    assert [context.id for context in contexts_of_coco(CAPTIONS, INSTANCES, crowds=True)] == ["4", "9"]
    assert contexts_of_coco(CAPTIONS, None)[0].boxes == ()
    assert contexts_of_coco(None, INSTANCES)[0].captions == ()


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": "none"}, "captions: images: must be a list"),
        ({"images": [{"file_name": "a.jpg"}]}, r"captions: images\[0\].id: must be of type int"),
        (
            {"annotations": [{"id": 1, "image_id": 7, "caption": "x"}]},
            r"annotations\[0\].image_id: there is no image 7",
        ),
        ({"annotations": [{"id": 1, "image_id": 9, "caption": 5}]}, r"annotations\[0\].caption"),
    ],
)
def test_no_coco_file(change, said):
    with pytest.raises(UserError, match=said):
        contexts_of_coco({**CAPTIONS, **change}, None)


@pytest.mark.parametrize("bbox", [[0, 0, 700, 5], [0, 0, 5], [-9, 0, 3, 3], ["a", 0, 1, 1], [0, 0, -4, 5]])
def test_boxes_outside(bbox):
    wrong = {"id": 8, "image_id": 9, "category_id": 2, "bbox": bbox, "iscrowd": 0}
    with pytest.raises(UserError, match=r"annotations\[0\].bbox"):
        contexts_of_coco(None, {**INSTANCES, "annotations": [wrong]})


def test_the_command(recipe, tmp_path):
    (tmp_path / "c.json").write_text(json.dumps(CAPTIONS))
    (tmp_path / "i.json").write_text(json.dumps(INSTANCES))
    code, said = recipe("coco", "--captions=c.json", "--instances=i.json", "--out=contexts.jsonl")
    assert code == 0
    assert "1 pictures, 2 captions, 2 boxes" in said
    (line,) = (tmp_path / "contexts.jsonl").read_bytes().splitlines()
    assert [read_context(line, "x")] == contexts_of_coco(CAPTIONS, INSTANCES)
    assert load(tmp_path / "contexts.jsonl")[0]["boxes"][0] == {"label": "cat", "box": [0.1, 0.1, 0.3, 0.3]}
    assert "already exists" in recipe("coco", "--captions=c.json", "--out=contexts.jsonl")[0]
    assert "nothing.json: cannot read it" in recipe("coco", "--captions=nothing.json", "--out=y.jsonl")[0]


def test_contexts_as_text():
    boxes = (NamedBox("cat", (0.1, 0.25, 1 / 3, 1)),)
    context = Context("1", "a.jpg", ("A cat.", "It sleeps."), boxes, ("MENU\nSoup", "MENU"))
    assert context.text("captions") == "A cat.\nIt sleeps."
    assert context.text("boxes") == "cat: [0.100, 0.250, 0.333, 1.000]"
    assert context.text("ocr") == "[OCR 1]\nMENU\nSoup\n[OCR 2]\nMENU"
    assert context.text("facts") == "(none)"
    assert read_context(json.dumps(to_json(context)).encode(), "x") == context


def test_words_become_a_transcript():
    words = [{"text": "SALE", "box": [10, 10, 50, 20]}, {"text": "today", "box": [55, 10, 90, 20]}]
    line = json.dumps({"image": "a.jpg", "ocr": ["SALE tody"], "words": words}).encode()
    assert read_context(line, "x") == Context("a.jpg", "a.jpg", ocr=("SALE tody", "SALE today"))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ([], "must be a JSON object"),
        ({"id": 1}, "image: must be the name"),
        ({"image": "a", "id": ""}, "id: must be text"),
        ({"image": "a", "captions": "A cat."}, "captions: must be a list"),
        ({"image": "a", "boxes": [{"label": "x", "box": [0, 0, 20, 30]}]}, r"boxes\[0\].box: must be shares"),
        ({"image": "a", "boxes": [{"label": "x", "box": [0.5, 0, 0.2, 1]}]}, r"boxes\[0\].box: must be shares"),
        ({"image": "a", "boxes": [{"box": [0, 0, 1, 1]}]}, r"boxes\[0\]: must be an object"),
        ({"image": "a", "boxes": [{"label": "x", "box": [0, 0, 1]}]}, "must be four numbers"),
    ],
)
def test_wrong_contexts(fields, said):
    line = json.dumps(fields).encode()
    with pytest.raises(RecordError, match=said):
        read_context(line, "x")
