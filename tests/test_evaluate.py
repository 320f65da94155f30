import io
import json
import subprocess
import sys
import types

import pytest
from PIL import Image

import vlm_jax
from vlm_jax import evaluate
from vlm_jax.data.conversation import Conversation, Turn
from vlm_jax.data.formats import open as open_
from vlm_jax.data.layouts.closest_aspect import ClosestAspect
from vlm_jax.errors import UserError


def picture():
    buffer = io.BytesIO()
    Image.new("RGB", (64, 32), "red").save(buffer, "PNG")
    return buffer.getvalue()


def asked(number, gold):
    turns = (Turn("user", "<image>\nWhich digit?"), Turn("assistant", gold))
    return Conversation(turns, (picture(),), id=f"q{number}", task="digits")


class FakeModel:
    """Says 1 wherever it sees red; the real one is tested with the whole road."""

    system = types.SimpleNamespace(
        grid=lambda width, height, images: ClosestAspect(tile_size=32, max_tiles=4).grid(width, height)
    )

    def answer(self, conversations, *, max_new_tokens, batch_size):
        assert (max_new_tokens, batch_size) == (5, 2)
        colours = [Image.open(io.BytesIO(c.images[0])).getpixel((0, 0)) for c in conversations]
        return ["1" if colour == (255, 0, 0) else "?" for colour in colours]


@pytest.fixture
def flags(tmp_path, monkeypatch):
    splits = {
        "test": [asked(i, gold) for i, gold in enumerate("1121")],
        "validation": [asked(i, "2") for i in range(3)],
    }
    monkeypatch.setattr(open_, "open_data", lambda path, split: splits[split])
    monkeypatch.setitem(vars(vlm_jax), "load", lambda folder: FakeModel())
    (tmp_path / "model").mkdir()
    return {
        "model": tmp_path / "model",
        "benchmark": "pocket",
        "data": tmp_path,
        "out": tmp_path / "scores.json",
        "batch_size": 2,
        "max_new_tokens": 5,
    }


def run(flags, *more):
    evaluate.main([*(f"--{name}={value}" for name, value in flags.items()), *more])
    return json.loads(flags["out"].read_text())


def test_the_file_holds_settings_scores_and_rows(flags, capsys):
    written = run(flags)
    assert written["tasks"]["digits"]["value"] == 0.75
    assert written["tasks"]["digits"]["baselines"] == {"majority": 0.25, "blank": 0.0}
    assert written["majority_answers"] == {"digits": "2"}
    assert (written["benchmark"], written["split"], written["max_new_tokens"]) == ("pocket", "test", 5)
    assert [row["prediction"] for row in written["rows"]] == ["1"] * 4
    assert written["rows"][0]["grids"] == [[2, 1]]
    said = capsys.readouterr()
    assert "asking pocket: 8/8 done" in said.err
    assert [line.split() for line in said.out.splitlines()] == [
        ["task", "metric", "score", "majority", "blank"],
        ["digits", "exact_match", "75.0%", "25.0%", "0.0%"],
    ]


def test_limit_and_no_blank(flags):
    written = run(flags, "--limit=2", "--no_blank")
    assert len(written["rows"]) == 2
    assert written["tasks"]["digits"]["baselines"] == {"majority": 0.0, "blank": None}


def test_controls(flags, capsys):
    written = run(flags, "--controls=wrong,shuffled")
    assert written["controls"] == ["wrong", "shuffled"]
    task = written["tasks"]["digits"]
    assert task["baselines"] == {"majority": 0.25, "blank": None}
    # All pictures are the same red one, so shuffling changes nothing, and there is no wrong one.
    assert task["controls"] == {"wrong": None, "shuffled": 0.75}
    said = capsys.readouterr()
    assert "12/12 done" in said.err
    assert said.out.splitlines()[0].split() == ["task", "metric", "score", "majority", "shuffled"]


def test_no_blank_keeps_the_other_controls(flags):
    assert run(flags, "--controls=blank,shuffled", "--no_blank")["controls"] == ["shuffled"]
    assert run(flags, "--controls=")["tasks"]["digits"]["baselines"]["blank"] is None


@pytest.mark.parametrize(
    ("flag", "value", "message"),
    [
        ("benchmark", "pockets", "--benchmark: unknown benchmark 'pockets'; did you mean 'pocket'"),
        ("model", "nowhere", "--model: nowhere: no such folder"),
        ("data", "nowhere", "--data: nowhere: no such file or folder"),
        ("out", "nowhere/x.json", "--out: nowhere/x.json: its folder does not exist"),
        ("controls", "blank,rong", r"--controls: unknown control 'rong' \(did you mean 'wrong'\?\)"),
        ("batch_size", "0", "--batch_size: must be at least 1"),
        ("max_new_tokens", "many", "--max_new_tokens: invalid int value: 'many'"),
        ("colour", "red", "unrecognized arguments: --colour=red"),
    ],
)
def test_a_mistake_is_named_before_anything_is_loaded(flags, monkeypatch, flag, value, message):
    monkeypatch.setitem(vars(vlm_jax), "load", lambda folder: pytest.fail("loaded"))
    with pytest.raises(UserError, match=message):
        run({**flags, flag: value})


def test_the_command_itself_teaches_and_fails_in_one_line():
    command = [sys.executable, "-m", "vlm_jax.evaluate"]
    helped = subprocess.run([*command, "--help"], capture_output=True, text=True, check=False)
    assert helped.returncode == 0
    assert "pocket     The pocket data" in helped.stdout
    assert "wrong      The pictures of another question" in helped.stdout
    failed = subprocess.run([*command, "--model=x"], capture_output=True, text=True, check=False)
    assert failed.returncode == 2
    assert failed.stderr.startswith("error: the following arguments are required: --benchmark")
    assert failed.stderr.count("\n") == 1
