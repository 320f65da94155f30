"""docs/data.md's way from an empty folder to a tuned model, as it stands there, but from a tiny model."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import tiny
from vlm_jax.convert.folders import write_folder

PAGE = (Path(__file__).parents[1] / "docs" / "data.md").read_text(encoding="utf-8")
CONFIGS = Path(__file__).parents[1] / "configs"


def commands():
    """The commands of the tutorial in order, each as a list of arguments behind `python`."""
    tutorial = PAGE[: PAGE.index("## What is read")]
    joined = tutorial.replace("\\\n", " ")
    return [line.split()[1:] for line in re.findall(r"^python -m .*$", joined, re.MULTILINE)]


@pytest.mark.slow
def test_the_tutorial_runs(tmp_path):
    folder = tmp_path / "runs" / "pocket"
    folder.parent.mkdir()
    write_folder(folder, tiny.params(), tiny.system(), tiny.tokenizer())
    for name, code in re.findall(r"<!-- file: (\S+) -->\n```python\n(.*?)```", PAGE, re.DOTALL):
        code = code.replace("range(600)", "range(20)")
        subprocess.run([sys.executable, "-c", code], cwd=tmp_path, check=True)
        assert name in PAGE[: PAGE.index(code[:40])]
    seen = []
    for arguments in commands():
        if "vlm_jax.main" in arguments:
            arguments = [*arguments, "--config.stages[0].epochs=1.0", "--config.evaluation.max_new_tokens=4"]
        if "vlm_jax.chat" in arguments:
            continue  # its prompt is one argument; other tests ask
        arguments = [a.replace("configs/", f"{CONFIGS}/") for a in arguments]
        command = [sys.executable, *arguments]
        one_device = {**os.environ, "XLA_FLAGS": ""}  # as a reader of the page has, where tests simulate eight
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=300, env=one_device)
        assert done.returncode == 0, done.stderr
        seen.append(arguments[1])
    assert seen == ["vlm_jax.data.check", "vlm_jax.data.show", "vlm_jax.main"]
    assert (tmp_path / "look" / "index.html").stat().st_size > 10_000
    report = json.loads((tmp_path / "runs" / "shapes" / "report.json").read_text())
    assert report["tasks"]["test"]["n"] == 4
