import io
import json
import os
import subprocess
import sys
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests import tiny
from tests.data.bad_records import write_bad_meta
from tests.meta_fixture import PHOTOS, RECORDS, turns, write_lines, write_meta
from vlm_jax.convert.workdirs import write_workdir
from vlm_jax.data import check
from vlm_jax.data.box_check import check_boxes
from vlm_jax.data.conversation import Conversation, RecordError, Turn
from vlm_jax.data.formats.meta import open_meta
from vlm_jax.data.inspection.expected import expected_packing
from vlm_jax.data.inspection.survey import survey
from vlm_jax.data.pipeline import Batches
from vlm_jax.data.plan.index import BAD, load_index
from vlm_jax.data.plan.mixture import MixtureConfig
from vlm_jax.data.sources import MemorySource, place_of
from vlm_jax.data.tiling import ClosestAspect, count_tiles
from vlm_jax.errors import UserError

PHOTO_SIZES = [(max(1, round(0.2 * width)), max(1, round(0.2 * height))) for width, height in PHOTOS.values()]


@pytest.fixture(scope="module")
def bad(tmp_path_factory):
    """A data set with everything that can be wrong: the meta file, and the reason by line of captions.jsonl."""
    return write_bad_meta(tmp_path_factory.mktemp("bad"))


@pytest.fixture
def run(tmp_path, monkeypatch, capsys):
    """Runs the command in a fresh folder; gives its exit code (or the `UserError`'s text) and what it printed."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        try:
            code = check.main([str(argument) for argument in arguments])
        except UserError as error:
            code = str(error)
        return code, capsys.readouterr().out

    return run


def quarantined(path):
    return [json.loads(line) for line in path.read_text("ascii").splitlines()]


def small(meta):
    """Flags that make the work of the tests small."""
    return "--data", meta, "--tile-size", 56, "--max-tiles", 4, "--workers", 0


def test_clean_data(tmp_path_factory, run, tmp_path):
    meta = write_meta(tmp_path_factory.mktemp("clean"), 0.2)
    code, said = run(*small(meta))
    assert code == 0
    table = [line.split() for line in said.splitlines()]
    tiles = 2 * sum(count_tiles(*size, ClosestAspect(tile_size=56, max_tiles=4)) for size in PHOTO_SIZES)
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


def survey_preparer(meta):
    from vlm_jax.data.inspection.flags import prepare

    return prepare(check._parse([str(part) for part in small(meta)])).preparer


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


def test_the_survey_finds_what_the_index_finds(bad, preparer):
    meta, _ = bad
    source = open_meta(meta)
    found, index = survey(source, preparer), load_index(source, preparer)
    boxes = {number for number, error in found.index.bad.items() if error.reason == "box"}
    assert set(found.index.bad) - boxes == set(index.bad) - boxes
    good = found.index.task_ids != BAD
    np.testing.assert_array_equal(found.index.sizes[good], index.sizes[good])
    np.testing.assert_array_equal(found.index.least[good], index.least[good])
    assert found.index.tasks == index.tasks
    parallel = survey(source, preparer, workers=2)
    np.testing.assert_array_equal(parallel.index.sizes, found.index.sizes)
    assert {n: str(e) for n, e in parallel.index.bad.items()} == {n: str(e) for n, e in found.index.bad.items()}
    pairs = [i for i in range(len(source)) if found.groups[found.group_ids[i]] == "pairs"]
    assert found.images[pairs].tolist() == [2, 3] * (RECORDS // 2)


def test_headers_are_enough(tmp_path, preparer, monkeypatch):
    """Of a large picture only the beginning is read, unless it is to be decoded."""
    meta = write_meta(tmp_path, 0.2)
    photo = tmp_path / "images/photos/coffee.jpg"
    photo.write_bytes(photo.read_bytes() + bytes(1 << 20))
    source = open_meta(meta)
    read = Counter()
    opened = type(source.parts[0])._read
    monkeypatch.setattr(
        type(source.parts[0]), "_read", lambda *a, header=False: (read.update([header]), opened(*a, header=header))[1]
    )
    survey(source, preparer)
    assert read == {True: len(source)}
    survey(source, preparer, deep=True, workers=0)
    assert read == {True: len(source), False: len(source)}


def test_the_expected_packing_is_a_runs(bad, preparer):
    """The same records are bad, rows have the same shape, and as many records are in them."""
    source = open_meta(bad[0])
    index = survey(source, preparer).index
    for tokens, tiles in ((None, None), (None, 9), (250, None), (300, 8)):
        packing, left = expected_packing(source, index, preparer.max_tokens, tokens, tiles)
        batches = Batches(source, preparer, MixtureConfig(rows=2, tokens=tokens, tiles=tiles), 0, index=index)
        assert (packing.tokens, packing.tiles) == tuple(batches.shape[:2])
        assert set(left.bad) == set(np.flatnonzero(batches.index.task_ids == BAD).tolist())
        assert len(batches.bad) == len(left.bad)
        rows = batches.rows(0, 0)
        assert Counter(np.concatenate(packing.rows).tolist()) == Counter(np.concatenate(rows).tolist())
        used = index.sizes[np.concatenate(packing.rows)].sum(axis=0)
        assert packing.token_fill == pytest.approx(used[0] / (len(packing.rows) * packing.tokens))
        assert packing.tile_fill == pytest.approx(used[1] / (len(packing.rows) * packing.tiles))


def test_sources_of_any_kind(preparer, png):
    """Without files there are tasks, and ids in place of lines."""
    good = Conversation((Turn("user", "Hm?"), Turn("assistant", "Ah.")), (png(30, 30),), "r0", "photos")
    broken = Conversation((Turn("user", "Hm?"), Turn("assistant", "Ah.")), (b"no",), "r1", "photos")
    found = survey(MemorySource([good, broken], "mine"), preparer)
    assert found.groups == ("photos", "mine")
    assert found.group_ids.tolist() == [0, 1]
    assert found.index.bad[1].place == "record r1"


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


# Random damage. Whatever is done to a data set, every line of it is counted as good or as bad.


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    folder = tmp_path_factory.mktemp("healthy")
    write_meta(
        folder, 0.1, talk={"length": None}, captions={"length": None}, pages={"length": None}, pairs={"length": None}
    )
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


junk = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(["<image>", "..", "/"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["from", "value", "x"]), inner, max_size=3)
    ),
    max_leaves=6,
)
FIELDS = ("image", "conversations", "id", "width", "video", "length", "images", "messages")


@st.composite
def damages(draw, healthy):
    """A copy of the files with some bytes, lines or fields changed."""
    files = dict(healthy)
    for _ in range(draw(st.integers(1, 4))):
        path = draw(st.sampled_from(sorted(path for path in files if path.name != "meta.json")))
        content = files[path]
        kind = draw(st.sampled_from(["bytes", "cut", "insert", "field", "gone"]))
        place = draw(st.integers(0, max(len(content) - 1, 0)))
        if kind == "bytes":
            noise = draw(st.binary(min_size=1, max_size=6))
            files[path] = content[:place] + noise + content[place + len(noise) :]
        elif kind == "cut":
            files[path] = content[:place]
        elif kind == "insert":
            files[path] = content[:place] + draw(st.binary(max_size=20)) + content[place:]
        elif kind == "gone" and path.suffix == ".jpg":
            del files[path]
        elif path.suffix == ".jsonl" and content.strip():
            lines = content.splitlines(keepends=True)
            number = draw(st.integers(0, len(lines) - 1))
            try:
                record = json.loads(lines[number])
            except ValueError:
                continue
            if isinstance(record, dict):
                record[draw(st.sampled_from(FIELDS))] = draw(junk)
                lines[number] = json.dumps(record).encode() + b"\n"
                files[path] = b"".join(lines)
    return files


def usable(source, number, preparer):
    """Whether a run could train on the record."""
    try:
        conversation = source[number]
        preparer(conversation)
        check_boxes(conversation)
    except RecordError:
        return False
    return True


@given(data=st.data())
@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
def test_nothing_is_lost_uncounted(healthy, tmp_path_factory, preparer, data):
    files = data.draw(damages(healthy))
    folder = tmp_path_factory.mktemp("damaged")
    for path, content in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)
    out, problem = io.StringIO(), ""
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            arguments = [*small(folder / "meta.json"), "--deep", "--quarantine", folder / "q.jsonl", "--max-bad", 1]
            assert check.main([str(part) for part in arguments]) == 0
    except UserError as error:
        problem = str(error)
    assert "\n" not in problem
    if not out.getvalue():
        assert "nothing to learn from" in problem  # a file without a line
        return
    lines = {}
    for name, entry in json.loads((folder / "meta.json").read_text()).items():
        content = (folder / entry["annotation"]).read_bytes()
        found = content.split(b"\n")
        while found and not found[-1].strip():
            found.pop()
        lines[name] = int(len(found) * min(1, entry["repeat_time"]))
    table = {row[0]: row for row in map(str.split, out.getvalue().splitlines()) if row}
    assert {name: int(table[name][1].replace(",", "")) for name in lines} == lines
    bad = {name: int(table[name][2]) for name in lines}
    listed = quarantined(folder / "q.jsonl") if (folder / "q.jsonl").exists() else []
    source, preparer = open_meta(folder / "meta.json"), survey_preparer(folder / "meta.json")
    assert {(row["source"], row["line"]) for row in listed} == {
        (file, int(line))
        for number in range(len(source))
        for file, _, line in [place_of(source, number).rpartition(":")]
        if not usable(source, number, preparer)
    }
    by_file = Counter(os.path.basename(row["source"]).removesuffix(".jsonl") for row in listed)
    assert bad == {name: by_file[name] for name in lines}
