"""`data.check --fix`: a copy without the bad records."""

import json
import os
from collections import Counter

import pytest

from tests.data.checking import quarantined, small, survey_preparer
from tests.meta_fixture import RECORDS, turns, write_lines, write_meta
from vlm_jax.data.formats.meta import open_meta
from vlm_jax.data.inspection.expected import expected_packing
from vlm_jax.data.inspection.survey import survey


def test_fix_writes_a_clean_copy(bad, run, tmp_path):
    meta, reasons = bad
    folder = meta.parent
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    out = folder / "sub"
    out.mkdir(exist_ok=True)
    code, said = run(*small(meta), "--deep", "--fix", out / "clean.json")
    assert "records are bad" in code  # of the data as it is
    assert "clean copy" in said

    entries = json.loads((out / "clean.json").read_text())
    old = json.loads(meta.read_text())
    assert list(entries) == list(old)
    kept = {}
    for name, entry in entries.items():
        kept[name] = (out / entry["annotation"]).read_bytes().splitlines(keepends=True)
        assert entry["length"] == len(kept[name])
        for field in ("data_augment", "max_dynamic_patch"):
            assert entry.get(field) == old[name].get(field)
        root, old_root = (os.path.realpath(base / e["root"]) for base, e in ((out, entry), (folder, old[name])))
        assert root == old_root
    assert not os.path.isabs(entries["captions"]["root"])
    assert os.path.isabs(entries["pages"]["root"])
    source = (folder / "captions.jsonl").read_bytes().split(b"\n")[:-1]
    good = [line.rstrip(b"\r") + b"\n" for number, line in enumerate(source, start=1) if number not in reasons]
    assert kept["captions"] == good
    assert len(good) == RECORDS + 1
    assert kept["talk"] == (folder / "talk.jsonl").read_bytes().splitlines(keepends=True)[: RECORDS // 2]
    assert (entries["talk"]["repeat_time"], entries["pages"]["repeat_time"]) == (1, 2)

    code, said = run(*small(out / "clean.json"), "--deep")
    assert code == 0
    assert "can be used" in said
    assert {path: path.read_bytes() for path in before} == before  # nothing of the data was touched

    # Trained on, the copy is what the data would be: the same records, each as often.
    preparer = survey_preparer(out / "clean.json")
    for path in (meta, out / "clean.json"):
        opened = open_meta(path)
        index = survey(opened, preparer, deep=True).index
        packing, index = expected_packing(opened, index, 32768, seed=1)
        held = Counter(opened[record].turns[-1].text for row in packing.rows for record in row)
        if path == meta:
            wanted = held
    assert held == wanted


def test_fix_of_a_json_list(tmp_path, run):
    """Every element becomes a line, whatever white space was in it."""
    write_meta(tmp_path / "data", 0.2)
    lines = (tmp_path / "data/captions.jsonl").read_text("utf-8").splitlines()
    records = [json.loads(line) for line in lines]
    records[1]["conversations"][1]["value"] = "Two\nlines\r\n."
    records[2]["image"] = "nowhere.jpg"
    (tmp_path / "data/list.json").write_text(json.dumps(records, indent=2).replace("\n", "\r\n"))
    root = tmp_path / "data/images/photos"
    flags = ("--data", tmp_path / "data/list.json", "--root", root, *small("")[2:])
    code, _ = run(*flags, "--max-bad", 0.2, "--fix", tmp_path / "clean.json")
    assert code == 0
    fixed = (tmp_path / "clean-list.jsonl").read_text("utf-8").splitlines()
    assert [json.loads(line) for line in fixed] == records[:2] + records[3:]
    assert run(*small(tmp_path / "clean.json"))[0] == 0


def test_fix_of_what_cannot_be_copied_line_by_line(tmp_path, run):
    pyarrow = pytest.importorskip("pyarrow")
    pytest.importorskip("pyarrow.parquet").write_table(
        pyarrow.Table.from_pylist([{"question": "Why?", "answer": "So."}, {"question": "Why?", "answer": ""}]),
        tmp_path / "a.parquet",
    )
    code, said = run(*small(tmp_path / "a.parquet"), "--fix", tmp_path / "clean.json")
    assert "only annotation files" in code
    assert said == ""  # told before the work, not after it
    code, said = run(*small(tmp_path / "a.parquet"), "--max-bad", 0.5)
    assert code == 0
    assert quarantined(tmp_path / "quarantine.jsonl")[0]["line"] == 2


@pytest.mark.parametrize("target", ["meta.json", "clean.json", "captions.jsonl", "nowhere/clean.json"])
def test_fix_never_writes_over_anything(tmp_path_factory, run, target):
    folder = tmp_path_factory.mktemp("fix")
    meta = write_meta(folder, 0.2)
    (folder / "clean-pages.jsonl").write_text("mine")
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    code, _ = run(*small(meta), "--fix", folder / target)
    assert "--fix" in code
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after == before


def test_names_of_sources_make_safe_names_of_files(tmp_path_factory, run):
    folder = tmp_path_factory.mktemp("names")
    entries = {}
    for number, name in enumerate(["../../up", "a b", "a_b", "A B", "猫/犬", ""]):
        write_lines(folder / f"{number}.jsonl", [{"conversations": turns(f"{number}?", "Yes.")}])
        entries[name] = {"root": ".", "annotation": f"{number}.jsonl"}
    (folder / "meta.json").write_text(json.dumps(entries))
    (folder / "out").mkdir()
    code, _ = run(*small(folder / "meta.json"), "--fix", folder / "out" / "clean.json")
    assert code == 0
    fixed = json.loads((folder / "out/clean.json").read_text())
    assert list(fixed) == list(entries)
    assert len({entry["annotation"].lower() for entry in fixed.values()}) == len(entries)
    assert {path.parent for path in (folder / "out").rglob("*")} == {folder / "out"}
    assert open_meta(folder / "out/clean.json")[4].turns[0].text == "4?"
