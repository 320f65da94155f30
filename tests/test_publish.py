"""The command that makes a folder to commit of a finished run."""

import importlib.util
import json
from pathlib import Path

import pytest

from vlm_jax.errors import UserError

ROOT = Path(__file__).parents[1]


def module(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    loaded = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(loaded)
    return loaded


publish = module(ROOT / "examples" / "publish.py")


@pytest.fixture
def run(tmp_path):
    """What a finished run leaves, as far as it is published. No file ends with a newline, as few of a run's do."""
    task = {"metric": "anls", "value": 0.5, "n": 9, "interval": [0.25, 0.75]}
    report = {
        "device": "2 x cpu", "date": "2030-01-01T00:00:00+00:00", "wall_seconds": 600.0, "peak_memory_bytes": 1 << 30,
        "versions": {"jax": "1.0"}, "tasks": {"document": {**task, "baselines": {"majority": 0.125, "blank": None}}},
    }  # fmt: skip
    folder = tmp_path / "run"
    (folder / "export").mkdir(parents=True)
    (folder / "export" / "tokenizer.json").write_text("{} ")
    (folder / "report.json").write_text(json.dumps(report))
    (folder / "report.html").write_text("<p>")
    (folder / "config.json").write_text(json.dumps(publish._recipe("pocket:full")))
    return folder


def publishing(run, target):
    publish.main([f"--run={run}", f"--target={target}", "--commit=" + "a" * 40])


def test_a_folder_says_where_it_is_from_and_may_be_committed(run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    target = Path("examples/pocket")
    publishing(run, target)
    names = ["README.md", "recipe.json", "report.html", "report.json", "tokenizer.json"]
    assert sorted(path.name for path in target.iterdir()) == names
    readme = (target / "README.md").read_text()
    assert "--config=configs/pocket.py:full --workdir=runs/full" in readme
    assert "| `document` | ANLS | 50.0 % | 25.0 – 75.0 | 12.5 % | – |" in readme
    check = module(ROOT / ".ci" / "check_files.py")
    assert [problem for path in target.iterdir() for problem in check.problems(path)] == []
    other = Path("examples/tool.py")
    other.write_text("x = 1")
    assert check.problems(other) == ["examples/tool.py: must end with exactly one newline"]
    (target / "old.bin").write_text("of an earlier one")
    publishing(run, target)
    assert sorted(path.name for path in target.iterdir()) == names


def test_what_is_there_stays_when_it_cannot_be_published(run, tmp_path, monkeypatch):
    mine = tmp_path / "mine"
    mine.mkdir()
    (mine / "thesis.txt").write_text("years of work")
    with pytest.raises(UserError, match="mine: already exists"):
        publishing(run, mine)
    assert (mine / "thesis.txt").is_file()

    target = tmp_path / "target"
    publishing(run, target)
    with monkeypatch.context() as patch:
        patch.setattr(publish, "MOST_BYTES", 10)
        with pytest.raises(UserError, match="too large to be committed"):
            publishing(run, target)
    assert (target / "README.md").is_file()
    (run / "export").rename(tmp_path / "elsewhere")
    with pytest.raises(UserError, match="run: has no export"):
        publishing(run, target)
    assert (target / "README.md").is_file()


def test_a_run_with_changed_fields_is_not_published_under_a_command_that_does_not_make_it(run, tmp_path):
    recipe = json.loads((run / "config.json").read_text())
    recipe["seed"] = 7
    recipe["runtime"]["log_seconds"] = 1.0  # which changes no number
    (run / "config.json").write_text(json.dumps(recipe))
    with pytest.raises(UserError, match=r"not what configs/pocket.py:full makes today: config.seed was 7, is 0$"):
        publishing(run, tmp_path / "target")
