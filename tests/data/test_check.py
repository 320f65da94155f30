import json
import os
import subprocess
import sys
from collections import Counter

import pytest

from tests import tiny
from tests.data.checking import quarantined, small, survey_preparer
from tests.meta_fixture import PHOTOS, RECORDS, write_lines, write_meta
from vlm_jax.convert.workdirs import write_workdir
from vlm_jax.data.formats.meta import open_meta
from vlm_jax.data.inspection.expected import expected_packing
from vlm_jax.data.inspection.survey import survey
from vlm_jax.data.layouts.closest_aspect import ClosestAspect
from vlm_jax.data.plan.index import load_index

PHOTO_SIZES = [(max(1, round(0.2 * width)), max(1, round(0.2 * height))) for width, height in PHOTOS.values()]


def test_clean_data(tmp_path_factory, run, tmp_path):
    meta = write_meta(tmp_path_factory.mktemp("clean"), 0.2)
    code, said = run(*small(meta))
    assert code == 0
    table = [line.split() for line in said.splitlines()]
    tiles = 2 * sum(ClosestAspect(tile_size=56, max_tiles=4).tiles(*size) for size in PHOTO_SIZES)
    for name, *cells in (
        ("captions", 8, 0, 8, tiles),
        ("pages", 8, 0, 8, 4 * (3 + 3)),
        ("pairs", 8, 0, 20),
        ("talk", 4, 0, 0, 0),
        ("all", 28, 0, 36),
    ):
        (row,) = (row for row in table if row[:1] == [name])
        assert row[1 : len(cells) + 1] == list(map(str, cells))
    assert "All 28 records can be used." in said
    assert "36 conversations in" in said  # the pages come twice
    assert "trained on this very data" in said
    assert list(tmp_path.iterdir()) == []


def test_every_reason_is_told(bad, run, tmp_path):
    meta, reasons = bad
    code, said = run(*small(meta), "--deep")
    folder = meta.parent
    rows = quarantined(tmp_path / "quarantine.jsonl")
    assert {row["line"]: row["reason"] for row in rows} == reasons
    assert {row["source"] for row in rows} == {str(folder / "captions.jsonl")}
    assert [row["line"] for row in rows] == sorted(reasons)

    total = 3 * RECORDS + RECORDS // 2 + len(reasons) + 1
    assert f"{len(reasons)} of {total} records are bad" in code
    assert "--max-bad" in code
    assert "\n" not in code
    assert f"{len(reasons)} of {total} records cannot be used:" in said
    for reason, count in Counter(reasons.values()).items():
        assert f"  {reason}: {count}\n" in said
    for row in rows:
        if row["reason"] not in ("json", "outside", "type"):  # of those only three are shown
            assert f"captions.jsonl:{row['line']}: {row['detail']}"[:100] in said
    assert "\x1b" not in said
    details = {row["line"]: row["detail"] for row in rows}
    first = min(reasons)
    for line, part in {
        first: "nowhere.jpg",
        first + 2: "the file is empty",
        first + 3: "truncated",
        first + 5: "50000 x 50000 pixels are more than the limit of 200 megapixels",
        first + 7: "link.jpg",
        first + 12: "2 <image> mark(s) for 1 image(s)",
        first + 13: "<box>[[10, 20, 1300, 400]]</box>",
        first + 16: "a row holds",
        first + 17: "not valid JSON",
    }.items():
        assert part in details[line]


def test_a_cut_image_is_found_only_when_it_is_decoded(bad, run, tmp_path):
    meta, reasons = bad
    run(*small(meta))
    headers = {row["line"] for row in quarantined(tmp_path / "quarantine.jsonl")}
    cut = min(reasons) + 3
    assert set(reasons) - headers == {cut}
    run(*small(meta), "--deep", "--workers", 2)
    assert {row["line"] for row in quarantined(tmp_path / "quarantine.jsonl")} == set(reasons)


def test_more_may_be_bad_if_the_user_says_so(bad, run, tmp_path):
    meta, reasons = bad
    code, _ = run(*small(meta), "--max-bad", 0.5, "--quarantine", tmp_path / "q.jsonl")
    assert code == 0
    assert len(quarantined(tmp_path / "q.jsonl")) == len(reasons) - 1
    assert not (tmp_path / "quarantine.jsonl").exists()
    assert run(*small(meta), "--max-bad", 0.99)[0] == 0
    share = (len(reasons) - 1) / (3 * RECORDS + RECORDS // 2 + len(reasons) + 1)
    assert run(*small(meta), "--max-bad", share + 1e-9)[0] == 0
    assert "records are bad" in run(*small(meta), "--max-bad", share - 1e-3)[0]


def test_an_old_list_is_replaced_and_removed_when_all_is_well(bad, run, tmp_path):
    path = tmp_path / "quarantine.jsonl"
    run(*small(bad[0]))
    before = path.read_bytes()
    run(*small(bad[0]))
    assert path.read_bytes() == before
    clean = write_meta(tmp_path / "clean", 0.2)
    assert run(*small(clean))[0] == 0
    assert not path.exists()
    path.write_text("my notes\n")
    assert "not a row of a quarantine file" in run(*small(clean))[0]
    assert path.read_text() == "my notes\n"


def test_records_that_no_row_holds(tmp_path_factory, run, tmp_path):
    meta = write_meta(tmp_path_factory.mktemp("clean"), 0.2)
    code, said = run(*small(meta), "--tokens", 50, "--max-bad", 1)
    assert "too long" in said
    index = load_index(open_meta(meta), survey_preparer(meta))
    rows = quarantined(tmp_path / "quarantine.jsonl")
    assert {row["reason"] for row in rows} == {"too long"}
    assert len(rows) == int((index.sizes[:, 0] > 50).sum())
    assert "no record is left" in code  # the pages are all too long
    assert run(*small(meta), "--tiles", 4, "--max-bad", 1)[0] == 0
    too_many = int((index.sizes[:, 1] > 4).sum())
    assert len(quarantined(tmp_path / "quarantine.jsonl")) == too_many > 0


def test_a_source_with_nothing_left(tmp_path_factory, run):
    folder = tmp_path_factory.mktemp("nothing")
    meta = write_meta(folder, 0.2)
    write_lines(folder / "pages.jsonl", [{}] * RECORDS)
    code, said = run(*small(meta), "--max-bad", 1)
    assert code.startswith(f"pages ({folder}/pages.jsonl): no record is left that can be used (type {RECORDS})")
    (row,) = (line.split() for line in said.splitlines() if line.split()[:1] == ["pages"])
    assert row[1:3] == [str(RECORDS)] * 2


def test_nothing_good_at_all(tmp_path_factory, run, tmp_path):
    folder = tmp_path_factory.mktemp("nothing")
    write_lines(folder / "a.jsonl", [{}] * 3)
    (folder / "meta.json").write_text(json.dumps({"a": {"root": ".", "annotation": "a.jsonl"}}))
    code, said = run(*small(folder / "meta.json"), "--fix", tmp_path / "out.json")
    assert "there is nothing to copy" in code
    assert "3 of 3 records cannot be used" in said
    assert [path.name for path in tmp_path.iterdir()] == ["quarantine.jsonl"]


def test_for_a_model(tmp_path_factory, run):
    folder = tmp_path_factory.mktemp("model")
    meta = write_meta(folder, 0.1)
    write_workdir(folder / "model", tiny.params(), tiny.system(), tiny.tokenizer())
    _, said = run("--data", meta, "--model", folder / "model", "--workers", 0, "--max-bad", 1)
    assert f"the tokenizer of {folder / 'model'}" in said
    system, tokenizer = tiny.system(), tiny.tokenizer()
    source = open_meta(meta)
    index = survey(source, system.preparer(tokenizer, system.model.decoder.max_tokens)).index
    _, index = expected_packing(source, index, system.model.decoder.max_tokens)
    assert f"{index.sizes[:, 0].sum():,}" in said
    assert len(index.bad) > 0  # the tiny model reads 256 tokens
    assert "too long" in said
    for flag in (("--tokenizer", folder), ("--tile-size", 448)):
        assert "cannot stand beside --model" in run("--data", meta, "--model", folder / "model", *flag)[0]


def test_with_a_tokenizer(tmp_path_factory, run):
    folder = tmp_path_factory.mktemp("tokenizer")
    meta = write_meta(folder, 0.1)
    tiny.tokenizer().save(folder / "tokenizer")
    code, said = run(*small(meta), "--tokenizer", folder / "tokenizer", "--template", "internvl2_5")
    assert code == 0
    assert f"the tokenizer in {folder / 'tokenizer'}" in said


@pytest.mark.parametrize(
    ("flags", "problem"),
    [
        ((), "--data"),
        (("--data", "nowhere.json"), "nowhere.json"),
        (("--data", "m.json", "--max-bad", "2"), "from 0 to 1"),
        (("--data", "m.json", "--tokens", "0"), "--tokens"),
        (("--data", "m.json", "--workers", "-1"), "--workers"),
        (("--data", "m.json", "--quarantine", "no/where/q.jsonl"), "--quarantine"),
        (("--data", "m.json", "--fix", "out.txt"), "--fix"),
    ],
)
def test_mistakes_are_one_line(run, flags, problem):
    code, _ = run(*flags)
    assert problem in code
    assert "\n" not in code


@pytest.mark.parametrize("side", ["27", "1000000"])
def test_tiles_of_a_size_that_no_encoder_takes(tmp_path, run, side):
    code, _ = run("--data", str(write_meta(tmp_path, scale=0.1)), "--tile-size", side)
    assert f"--tile-size: must lie in 28..8192, got {side}" in code


def test_as_a_command(bad, tmp_path):
    meta, reasons = bad
    command = [sys.executable, "-m", "vlm_jax.data.check", *map(str, small(meta))]
    done = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": os.getcwd()}
    )
    assert done.returncode == 2
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: ")
    assert "records are bad" in last
    assert "Traceback" not in done.stderr
    assert "captions" in done.stdout
    assert "\x1b" not in done.stdout + done.stderr
    assert len(quarantined(tmp_path / "quarantine.jsonl")) == len(reasons) - 1
