import dataclasses

import pytest

from tests.meta_fixture import RECORDS, write_meta
from tests.training.helpers import recipe_fields
from vlm_jax.config import build
from vlm_jax.errors import UserError
from vlm_jax.training.data import MetaData
from vlm_jax.training.recipe import Recipe


def test_a_recipe_takes_meta_files(tmp_path):
    train = write_meta(tmp_path / "train", scale=0.05)
    test = write_meta(tmp_path / "test", scale=0.05)
    data = build(Recipe, recipe_fields(data=dict(type="meta", train=str(train)))).data
    assert data == MetaData(train=str(train))
    said = []
    splits = data.open(tmp_path / "run", 0, said.append)
    assert splits.validation is splits.test is None
    assert len(splits.train) == 3 * RECORDS + RECORDS // 2
    assert said == ["train: 28 records (captions 8 x 1, pages 8 x 2, pairs 8 x 1, talk 4 x 1)"]
    splits = dataclasses.replace(data, test=str(test)).open(tmp_path / "run", 0, said.append)
    assert splits.validation is None
    assert len(splits.test) == 28
    assert said[-1].startswith("test: 28 records")


def test_mistakes_name_the_field(tmp_path):
    data = build(Recipe, recipe_fields(data=dict(type="meta"))).data  # a recipe's file leaves it to the command line
    with pytest.raises(UserError, match=r"config.data.train: the path of a meta file is missing"):
        data.open(tmp_path, 0, print)
    with pytest.raises(UserError, match=r"config.data.test: .*no.json: cannot be read: No such file"):
        MetaData(train=str(write_meta(tmp_path, scale=0.05)), test=str(tmp_path / "no.json")).open(tmp_path, 0, print)


def test_a_recipe_takes_data_of_any_kind(tmp_path):
    from vlm_jax.data.formats.open import open_data
    from vlm_jax.data.formats.shards import write_shards

    meta = write_meta(tmp_path / "meta", scale=0.05)
    talk = tmp_path / "meta" / "talk.jsonl"
    write_shards({"train": open_data(meta), "test": open_data(talk)}, tmp_path / "set")
    said = []
    splits = MetaData(train=str(talk), test=str(tmp_path / "set")).open(tmp_path / "run", 0, said.append)
    assert said == [f"train: {RECORDS} records", f"test: {RECORDS} records"]
    assert splits.test.split == "test"
    splits = MetaData(train=str(tmp_path / "set")).open(tmp_path / "run", 0, said.append)
    assert splits.train.weights["pages"] == 2
    (tmp_path / "set" / "weights.json").write_text('{"train": {"pages": []}}')
    with pytest.raises(UserError, match=r"weights.json: must be {"):
        _ = open_data(tmp_path / "set").weights
