"""A system without square tiles through the commands: its data, its evaluation and report, and a chat."""

import io
import json

import numpy as np
import pytest
from PIL import Image

from tests import fuyu
from vlm_jax import chat, evaluate
from vlm_jax.convert.workdirs import write_workdir
from vlm_jax.data import check, show
from vlm_jax.data.formats.open import open_data
from vlm_jax.evaluation.report import REPORT_KEYS, write_report

SIZES = [(8, 9), (40, 24), (17, 5), (100, 30), (1, 1), (23, 24)]
SIDES = (8, 12, 20)


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    folder = tmp_path_factory.mktemp("native") / "run"
    write_workdir(folder, fuyu.params(), fuyu.system(sides=SIDES), fuyu.tokenizer())
    return folder


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    lines = []
    for number, size in enumerate(SIZES):
        (folder / f"{number}.png").write_bytes(fuyu.picture(*size, number))
        turns = [("human", "<image>\nWhat is the total?"), ("gpt", f"{number % 3}")]
        turns = [{"from": role, "value": text} for role, text in turns]
        lines.append(json.dumps({"image": f"{number}.png", "conversations": turns}))
    (folder / "asked.jsonl").write_text("\n".join(lines))
    return folder / "asked.jsonl"


def patches_of(data, **layout):
    """Patches of every picture in training, or outside of it."""
    preparer = fuyu.system(**layout).preparer(fuyu.tokenizer(), 256, training=bool(layout))
    source = open_data(data)
    return [int(preparer(source[number]).tile_grid.prod(axis=1).sum()) for number in range(len(source))]


def test_check(workdir, data, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert check.main([f"--data={data}", f"--model={workdir}", "--deep", "--workers=0"]) == 0
    said = capsys.readouterr().out
    assert "All 6 records can be used." in said
    slots = sum(-(-count // fuyu.SLOT) for count in patches_of(data, sides=SIDES))
    (row,) = [line.split() for line in said.splitlines() if line.split()[:1] == ["asked"]]
    assert row[1:5] == ["6", "0", "6", str(slots)]


def test_show(workdir, data, capsys, tmp_path):
    assert show.main([f"--data={data}", f"--model={workdir}", f"--out={tmp_path}"]) == 0
    page = (tmp_path / "index.html").read_text()
    assert "slots of 6 patches of 4 px" in page
    assert "pictures stretched to a square of 8 or 12 or 20 px" in page
    for count in set(patches_of(data, sides=SIDES)):
        assert f"{count} visual" in page
    assert "|NEWLINE|" in page


def test_evaluation_and_report(workdir, data, capsys, tmp_path):
    out = tmp_path / "scores.json"
    flags = [f"--model={workdir}", f"--data={data}", f"--out={out}", "--max_new_tokens=3", "--batch_size=8"]
    evaluate.main([*flags, "--benchmark=questions", "--controls=blank,shuffled,wrong"])
    written = json.loads(out.read_text())
    assert [(row["width"], row["height"]) for row in written["rows"]] == SIZES
    assert all(row["grids"] == [[1, 1]] for row in written["rows"])
    assert all(row[f"{control}_prediction"] is not None for row in written["rows"] for control in written["controls"])

    source = open_data(data)
    images = {source[number].id: source[number].images for number in range(len(source))}
    report = {**dict.fromkeys(REPORT_KEYS, 0), "stages": {}, "tasks": written["tasks"], "versions": {}, "device": "x"}
    report |= {"config_digest": "x", "date": "2000-01-01"}
    write_report(tmp_path, report, written["rows"], images, tiler=fuyu.system(sides=SIDES).tiles)
    assert "100 × 30" in (tmp_path / "report.html").read_text()


def test_chat(workdir, capsys, tmp_path):
    (tmp_path / "wide.png").write_bytes(fuyu.picture(100, 30))
    flags = [f"--model={workdir}", f"--image={tmp_path / 'wide.png'}", "--prompt=What is the total?"]
    assert chat.main([*flags, "--max_new_tokens=6"]) == 0
    said = fuyu.model().generate("What is the total?", [fuyu.picture(100, 30)], 6)
    assert capsys.readouterr().out == said + "\n"


def test_a_view_is_the_whole_picture_as_it_was_shrunk():
    image = Image.open(io.BytesIO(fuyu.picture(100, 30)))
    (view,) = fuyu.system(sides=SIDES).tiles(image)
    assert view.shape == (12, 40, 3)
    np.testing.assert_array_equal(view, np.asarray(image.resize((40, 12), Image.Resampling.BILINEAR)))
