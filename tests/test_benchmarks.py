"""The benchmarks run, and memory is flat; what they time is for a quiet machine."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(name, *flags):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(ROOT / "benchmarks" / name), *flags]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_help():
    for file in sorted((ROOT / "benchmarks").glob("*loading.py")):
        assert f"python benchmarks/{file.name}" in run(file.name, "--help")


@pytest.mark.slow
def test_memory_is_flat():
    said = run("loading.py", "--memory", "--conversations=2000")
    lines = re.findall(r"(\d+) conversations +[\d.]+ s +(\d+) MiB", said)
    assert [int(seen) // 200 for seen, _ in lines] == list(range(1, 11))
    settled = [int(held) for _, held in lines[4:]]
    assert max(settled) - settled[0] < 40, said


@pytest.mark.slow
def test_tables_of_loading():
    said = run("loading.py", "--repeats=1")
    assert len(re.findall(r"^ +(?:1024x768|3840x2160) +\dx\d\+1 ", said, re.MULTILINE)) == 4
    rows = re.findall(r"^ +3840x2160 +12 +(draft|reducing_gap=2) +[\d.]+ +[\d.]+ +([\d.]+)", said, re.MULTILINE)
    assert [name for name, _ in rows] == ["draft", "reducing_gap=2"]
    assert all(0 < float(difference) < 4 for _, difference in rows)
