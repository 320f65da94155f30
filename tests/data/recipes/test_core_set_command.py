import json

from tests.data.recipes.conftest import load
from vlm_jax.data.formats.open import open_data


def write(path, rows):
    path.write_text("".join(json.dumps({"id": id_, "question": q, "answer": a}) + "\n" for id_, q, a in rows))
    return path


def test_the_command(recipe, tmp_path):
    """Two types with quotas; ids are shared, as those of many records of one picture are."""
    yes = [("9", f"Is the red dog number {n} left of the man?", "Yes.") for n in range(6)]
    no = [("9", f"Is the red dog number {n} left of the tree?", "No.") for n in range(2)]
    plain = [("9", f"Which color has number {n}?", "It is blue.") for n in range(3)]
    talk = write(tmp_path / "talk.jsonl", [*yes, *no, *plain])
    detail = write(tmp_path / "detail.jsonl", [("1", "Describe it.", "A cat."), ("2", "Describe it.", "A red door.")])
    flags = ("--data=talk.jsonl", "--data=detail.jsonl", "--quota=talk=6,detail=1")
    code, said = recipe("core-set", *flags, "--out=core.json")
    assert code == 0
    assert "talk: 6 of 11 records (quota 6)" in said
    assert "yes: 2, no: 2" in said
    assert [record["id"] for record in load(tmp_path / "core-detail.jsonl")] == ["2"]
    chosen = {record["question"]: record["answer"] for record in load(tmp_path / "core-talk.jsonl")}
    assert sorted(chosen.values()) == ["It is blue."] * 2 + ["No."] * 2 + ["Yes."] * 2
    assert len(open_data(tmp_path / "core.json")) == 7

    first = (tmp_path / "core-talk.jsonl").read_bytes()
    talk.write_text("".join(reversed(talk.read_text().splitlines(keepends=True))))
    assert recipe("core-set", *flags, "--out=core.json", "--overwrite")[0] == 0
    assert (tmp_path / "core-talk.jsonl").read_bytes() == first

    _, said = recipe("core-set", *flags, "--yes-no=any", "--out=any.json")
    assert "yes: 6, no: 0" in said
    (tmp_path / "mine.toml").write_text('cats = ["cat"]')
    assert recipe("core-set", *flags, "--concepts=mine.toml", "--out=cats.jsonl")[0] == 0
    assert "A cat." in [record["answer"] for record in load(tmp_path / "cats.jsonl")]
    assert detail.exists()


def test_bad_records_are_counted(recipe, tmp_path):
    write(tmp_path / "talk.jsonl", [(str(n), "What?", "red" if n else "") for n in range(50)])
    code, _ = recipe("core-set", "--data=talk.jsonl", "--quota=5", "--out=core.jsonl")
    assert "1 of 50 records are bad" in code
    code, said = recipe("core-set", "--data=talk.jsonl", "--quota=5", "--out=core.jsonl", "--max-bad=0.1")
    assert code == 0
    assert "1 of 50 records are bad" in said
    assert load(tmp_path / "quarantine.jsonl")[0]["line"] == 1


def test_mistakes(recipe, tmp_path):
    write(tmp_path / "talk.jsonl", [("1", "What?", "red")])
    (tmp_path / "wrong.toml").write_text('cats = "cat"')
    for flags, part in (
        (("--quota=other=3",), "no record of type 'other'"),
        (("--quota=talk",), "--quota: must be NAME=NUMBER"),
        (("--quota=1", "--yes-no=0"), "--yes-no"),
        (("--quota=1", "--concepts=wrong.toml"), "cats: must be a list of keywords"),
    ):
        assert part in recipe("core-set", "--data=talk.jsonl", *flags, "--out=core.json")[0]
