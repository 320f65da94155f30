import json

import pytest

from tests.meta_fixture import turns, write_lines, write_meta
from vlm_jax.data.formats.annotations import AnnotationSource
from vlm_jax.data.formats.open import open_data
from vlm_jax.data.sources import ManySources
from vlm_jax.errors import UserError

RECORDS = [{"image": "a.png", "conversations": turns("<image>\n?", str(number))} for number in range(3)]


def test_meta_files(tmp_path):
    for indent in (None, 1):
        meta = write_meta(tmp_path, scale=0.05)
        meta.write_text(json.dumps(json.loads(meta.read_text()), indent=indent))
        source = open_data(meta)
        assert isinstance(source, ManySources)
        assert source.weights["pages"] == 2
        assert source[0].turns
    (tmp_path / "odd.json").write_text(json.dumps({"conversations": {"root": ".", "annotation": "talk.jsonl"}}))
    assert open_data(tmp_path / "odd.json")[0].task == "conversations"


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "list.json"])
def test_files_of_records(tmp_path, png, name):
    (tmp_path / "images").mkdir()
    (tmp_path / "images/a.png").write_bytes(png(20, 30))
    write_lines(tmp_path / name, RECORDS)
    if name == "list.json":
        (tmp_path / name).write_text(json.dumps(RECORDS))
    source = open_data(tmp_path / name, root=tmp_path / "images")
    assert isinstance(source, AnnotationSource)
    assert [source[number].turns[1].text for number in range(len(source))] == ["0", "1", "2"]
    assert source[1].images == (png(20, 30),)
    assert source[1].task == name.partition(".")[0]
    with pytest.raises(UserError, match=f"{name}:1: image: 'a.png' cannot be read from {tmp_path}"):
        open_data(tmp_path / name)[0]
    write_lines(tmp_path / name, RECORDS[:1])
    if name != "list.json":
        assert len(open_data(tmp_path / name)) == 1


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{", "a.json: not valid JSON"),
        ("a.json", "", "a.json: not valid JSON"),
        ("a.json", "[{}", "a.json: not valid JSON: the file ends within record 1"),
        ("a.json", "[]", "a.json: the data set is empty"),
        ("a.json", '{"a": {"root": "x"}}', "a.json: a.annotation: required field is missing"),
        ("a.json", '{"data": [1]}', "a.json: data: must be an object with root and annotation"),
        ("a.jsonl", "\n\n", "a.jsonl: the data set is empty"),
        ("a.csv", "x,y", r"a.csv: not a data set; expected a meta file \(.json"),
        ("folder/x", "", "folder: not a data set; expected a meta file"),
        ("folder/dataset_info.json", "{}", "dataset_info.json: damaged: KeyError: 'splits'"),
        ("folder/dataset_info.json", '{"splits": [{"name": "test"}]}', "folder: no split 'train', there are test"),
    ],
)
def test_mistakes(tmp_path, name, content, message):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_text(content)
    with pytest.raises(UserError, match=message):
        open_data(path if path.parent == tmp_path else path.parent)


def test_what_is_not_there(tmp_path):
    with pytest.raises(UserError, match=r"none.jsonl: cannot be read: No such file or directory"):
        open_data(tmp_path / "none.jsonl")
    for address in ("s3://bucket/a.json", "hf://datasets/x"):
        with pytest.raises(UserError, match="is an address; copy the data into a folder first"):
            open_data(address)
