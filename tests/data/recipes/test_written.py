import io
import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from tests.data.recipes.conftest import load
from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.formats.open import open_data
from vlm_jax.data.recipes.items import content_key, file_names, read_item, separate, with_file_names
from vlm_jax.data.recipes.written import Part, chosen, write_parts
from vlm_jax.data.sources import MemorySource
from vlm_jax.errors import UserError


def png(color):
    file = io.BytesIO()
    Image.new("RGB", (8, 8), color).save(file, "PNG")
    return file.getvalue()


def talk(*texts):
    return tuple(Turn("assistant" if number % 2 else "user", text) for number, text in enumerate(texts))


def test_pictures_of_parquet_are_stored_by_their_content(tmp_path, recipe):
    colors = ("red", "blue", "red")
    rows = [{"image": {"bytes": png(c), "path": None}, "question": "What?", "answer": c} for c in colors]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "set.parquet")
    assert recipe("mix", "--data=set.parquet", "--out=all.jsonl")[0] == 0
    assert len(list((tmp_path / "all-images").iterdir())) == 2
    source = open_data(tmp_path / "all.jsonl")
    assert [source[number].images for number in range(3)] == [(png(color),) for color in colors]
    assert recipe("mix", "--data=set.parquet", "--out=meta.json")[0] == 0
    meta = open_data(tmp_path / "meta.json")
    assert [meta[number].turns for number in range(3)] == [source[number].turns for number in range(3)]


def test_independent_questions_become_conversations_of_their_own(tmp_path):
    turns = talk("Image-1: <image>\n<image>\nWhat?", "This.", "Why?", "So.")
    both = Conversation((Turn("system", "Be brief."), *turns), (png("red"), png("blue")), "7", independent=True)
    first, second = separate(both)
    assert first.turns == (Turn("system", "Be brief."), *talk("Image-1: <image>\n<image>\nWhat?", "This."))
    assert second.turns == (Turn("system", "Be brief."), *talk("Image-1: <image>\n<image>\nWhy?", "So."))
    assert separate(Conversation(turns, both.images, "8"))[0].turns == turns
    text = Conversation(talk("What?", "This.", "Why?", "So."), (), "9", independent=True)
    assert [single.turns[0].text for single in separate(text)] == ["What?", "Why?"]

    source = MemorySource([both, text])
    write_parts([chosen("talk", source, [1, 0], tmp_path / "out.jsonl")], tmp_path / "out.jsonl")
    written = open_data(tmp_path / "out.jsonl")
    assert [len(written[number].images) for number in range(4)] == [0, 0, 2, 2]
    assert [record["id"] for record in load(tmp_path / "out.jsonl")] == ["9-0", "9-1", "7-0", "7-1"]


def test_records_are_repeated_where_no_meta_file_can_say_it(tmp_path):
    record = {"conversations": [{"from": "human", "value": "a"}, {"from": "gpt", "value": "b"}]}
    counts = write_parts([Part("a", [record], tmp_path, repeat=3)], tmp_path / "out.jsonl")
    assert (counts, len(load(tmp_path / "out.jsonl"))) == ({"a": 3}, 3)
    counts = write_parts([Part("a", [record], tmp_path, repeat=3)], tmp_path / "out.json")
    assert counts == {"a": 1}
    assert json.loads((tmp_path / "out.json").read_text())["a"]["repeat_time"] == 3


def test_all_or_nothing(tmp_path):
    def failing():
        yield {"id": 1}
        raise UserError("trouble")

    for name in ("out.json", "out.jsonl"):
        with pytest.raises(UserError, match="trouble"):
            write_parts([Part("a", failing(), tmp_path)], tmp_path / name)
        with pytest.raises(UserError, match="no record is left"):
            write_parts([Part("a", [], tmp_path)], tmp_path / name)
    assert list(tmp_path.iterdir()) == []


def test_names_of_files():
    fields = {"image": ["a.png", "b.png"], "video": "c.mp4", "id": "a.png"}
    assert file_names(fields) == ["a.png", "b.png", "c.mp4"]
    renamed = with_file_names(fields, {"a.png": "x/a.png", "c.mp4": "x/c.mp4"})
    assert renamed == {"image": ["x/a.png", "b.png"], "video": "x/c.mp4", "id": "a.png"}
    assert file_names({"image": "", "images": None}) == []


def test_ids_do_not_depend_on_the_place(tmp_path, make_records):
    path = make_records("a", 3, ids=False)
    lines = path.read_text().splitlines(keepends=True)
    source = open_data(path)
    before = {read_item(source, number).questions()[0]: read_item(source, number).id for number in range(3)}
    path.write_text("".join(reversed(lines)))
    source = open_data(path)
    assert {read_item(source, number).questions()[0]: read_item(source, number).id for number in range(3)} == before
    assert len(set(before.values())) == 3


def test_copies_have_one_key(tmp_path):
    def record(id_, image, question, answer):
        turns = [{"from": "human", "value": question}, {"from": "gpt", "value": answer}]
        return {"id": id_, "image": image, "conversations": turns}

    records = [
        record(1, "coco/1.jpg", "<image>\nWhat?", "A."),
        record("x", "1.jpg", "What?\n<image>", "A."),
        record(1, "2.jpg", "<image>\nWhat?", "A."),
        record(1, "1.jpg", "<image>\nWhat?", "B."),
    ]
    path = tmp_path / "r.json"
    path.write_text(json.dumps(records))
    keys = [content_key(read_item(open_data(path), number)) for number in range(4)]
    assert keys[0] == keys[1]
    assert len(set(keys)) == 3
