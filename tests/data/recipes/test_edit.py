import json

import pytest

from tests.data.recipes.conftest import load
from vlm_jax.data.recipes.edit import Add, Cap, Drop, Replace, apply, read_edits
from vlm_jax.data.recipes.mix import capped
from vlm_jax.errors import UserError

BASE, OFFERED = {"instruct": 6, "textcaps": 3, "gqa": 4}, {"docvqa": 5, "syndog": 2, "ai2d": 3, "core": 2}


def sizes(mixture):
    return {name: len(numbers) for name, numbers in mixture.items()}


def test_edits_of_llava_next():
    mixed = apply(BASE, OFFERED, [Replace(source="textcaps", by=["docvqa", "syndog"]), Add(sources=["ai2d"])])
    assert list(sizes(mixed).items()) == [("instruct", 6), ("docvqa", 5), ("syndog", 2), ("gqa", 4), ("ai2d", 3)]


def test_operations_come_one_after_another():
    operations = [Cap(records=2), Add(sources=["docvqa"]), Drop(source="gqa"), Cap(records=1, source="instruct")]
    assert sizes(apply(BASE, OFFERED, operations)) == {"instruct": 1, "textcaps": 2, "docvqa": 5}


def test_caps_draw_as_mixtures_do():
    mixed = apply(BASE, OFFERED, [Cap(records=2)], seed=7)
    assert mixed["gqa"].tolist() == capped(4, 2, "gqa", 7).tolist()
    twice = apply(BASE, OFFERED, [Cap(records=3), Cap(records=1)], seed=7)["instruct"]
    assert set(twice.tolist()) < set(capped(6, 3, "instruct", 7).tolist())


def test_only_the_records_that_another_source_has_too_are_replaced():
    keys = {"instruct": list("abcdef"), "core": list("ea")}
    operation = Replace(source="instruct", same_as="core", by=["ai2d"])
    mixed = apply(BASE, OFFERED, [operation], keys=keys.__getitem__)
    assert mixed["instruct"].tolist() == [1, 2, 3, 5]
    assert list(mixed) == ["instruct", "ai2d", "textcaps", "gqa"]
    mixed = apply({"instruct": 2}, OFFERED, [Drop(source="instruct", same_as="core")], keys=lambda name: "ae")
    assert mixed == {}


@pytest.mark.parametrize(
    ("operation", "said"),
    [
        (Drop(source="textcap"), r"operations\[0\] \(drop\).source: no source 'textcap' \(did you mean 'textcaps'\?\)"),
        (Add(sources=["nothing"]), r"\(add\).sources: no source 'nothing'"),
        (Add(sources=["ai2d", "ai2d"]), "'ai2d' is in the mixture already"),
        (Replace(source="gqa", by=["instruct"]), "'instruct' is in the mixture already"),
        (Cap(records=0), "records: must be at least 1"),
        (Cap(records=1, source="ai2d"), "no source 'ai2d'"),
        (Drop(source="gqa", same_as="ai2d"), "gqa has no record that ai2d has too"),
    ],
)
def test_mistakes(operation, said):
    with pytest.raises(UserError, match=said):
        apply(BASE, OFFERED, [operation], keys=lambda name: [f"{name}{n}" for n in range(9)])


def test_a_file_with_a_mistake(tmp_path):
    path = tmp_path / "edits.toml"
    for text, said in (
        ('[[operations]]\ntype = "drop"\nsurce = "a"', "surce"),
        ('[[operations]]\ntype = "dorp"', "dorp"),
        ("operations = 3", "operations"),
        ("[[operations", "not TOML"),
    ):
        path.write_text(text)
        with pytest.raises(UserError, match=said):
            read_edits(path)
    with pytest.raises(UserError, match=r"nowhere.toml: cannot read it"):
        read_edits(tmp_path / "nowhere.toml")


def test_the_command(recipe, tmp_path, make_records):
    """SVIT's substitution: a core set in place of the records of another set, within one file of a mixture."""
    instruct, vqa, core = make_records("instruct", 4), make_records("vqa", 3), make_records("core", 2)
    mixed = tmp_path / "mixed"
    mixed.mkdir()
    lines = [json.loads(line) for path in (instruct, vqa) for line in path.read_text().splitlines()]
    for record in lines:  # folders and the place of the mark differ between the published files
        record["image"] = f"../{'instruct' if 'instruct' in record['id'] else 'vqa'}-data/" + record["image"]
        record["conversations"][0]["value"] = (
            record["conversations"][0]["value"].removeprefix("<image>\n") + "\n<image>"
        )
    (mixed / "mix665k.json").write_text(json.dumps(lines, indent=1))
    (tmp_path / "svit.toml").write_text(
        '[sources]\ninstruct = "instruct-data/instruct.jsonl"\ncore = "core-data/core.jsonl"\n'
        '[[operations]]\ntype = "replace"\nsource = "mix665k"\nsame_as = "instruct"\nby = ["core"]\n'
    )
    code, said = recipe("edit", "--data", mixed / "mix665k.json", "--edits=svit.toml", "--out=svit.json")
    assert code == 0
    entries = json.loads((tmp_path / "svit.json").read_text())
    assert {name: entry["length"] for name, entry in entries.items()} == {"mix665k": 3, "core": 2}
    assert [record["id"] for record in load(tmp_path / "svit-mix665k.jsonl")] == ["vqa0", "vqa1", "vqa2"]
    assert (tmp_path / "svit-core.jsonl").read_bytes() == core.read_bytes()
    assert "instruct" in said


def test_a_meta_file_comes_in_whole(recipe, tmp_path, make_records):
    base, one, two = make_records("base", 2), make_records("one", 3), make_records("two", 1)
    meta = {p.stem: {"root": f"../{p.parent.name}", "annotation": f"../{p.parent.name}/{p.name}"} for p in (one, two)}
    (tmp_path / "both").mkdir()
    (tmp_path / "both" / "meta.json").write_text(json.dumps(meta))
    edits = {"sources": {"both": "both/meta.json"}, "operations": [{"type": "add", "sources": ["both"]}]}
    (tmp_path / "edits.json").write_text(json.dumps(edits))
    assert recipe("edit", "--data", base, "--edits=edits.json", "--out=new.json")[0] == 0
    assert list(json.loads((tmp_path / "new.json").read_text())) == ["base", "both-one", "both-two"]
