import json

import pytest
from PIL import Image

from vlm_jax.data.recipes.__main__ import main
from vlm_jax.errors import UserError


@pytest.fixture
def recipe(tmp_path, monkeypatch, capsys):
    """Runs a recipe in a fresh folder; gives its exit code (or the `UserError`'s text) and what it printed."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("no_proxy", "*")
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)

    def run(*arguments):
        try:
            code = main([str(argument) for argument in arguments])
        except UserError as error:
            code = str(error)
            assert "\n" not in code
        return code, capsys.readouterr().out

    return run


@pytest.fixture
def make_records(tmp_path):
    """Writes a file of records with pictures in a folder of its own."""

    def make(name, count, *, image=True, answer="because", ids=True):
        folder = tmp_path / f"{name}-data"
        folder.mkdir(exist_ok=True)
        lines = []
        for number in range(count):
            mark = "<image>\n" if image else ""
            turns = [
                {"from": "human", "value": f"{mark}Why {name} {number}?"},
                {"from": "gpt", "value": f"{answer} {number}"},
            ]
            record = {"id": f"{name}{number}"} if ids else {}
            if image:
                record["image"] = f"pictures/{number}.png"
                (folder / "pictures").mkdir(exist_ok=True)
                Image.new("RGB", (20 + number, 16), (number, 0, 0)).save(folder / record["image"])
            lines.append(json.dumps({**record, "conversations": turns}))
        path = folder / f"{name}.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines))
        return path

    return make


def load(path):
    """The lines of a file of records."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]
