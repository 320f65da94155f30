"""Mini-InternVL-1B at full size on a CPU, with random weights as released: `pytest --full-size tests/full_size`.

Needs 14 GiB of memory, 12 GB of disk and about half an hour on two cores. Every step runs in a process of its own, so
that its largest memory can be told.
"""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests import released, tiny
from tests.meta_fixture import write_meta

pytestmark = pytest.mark.skipif("not config.getoption('--full-size')", reason="takes half an hour: give --full-size")

ROOT = Path(__file__).parents[2]
GIB = 2**30


def run(*arguments, folder) -> tuple[str, int]:
    """Output and largest memory in bytes of a command that must succeed."""
    measured = (
        "import os, resource, sys; code = os.spawnv(os.P_WAIT, sys.executable, [sys.executable] + sys.argv[1:]); "
    )
    measured += "print('PEAK', resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * 1024); sys.exit(code)"
    environment = {**os.environ, "XLA_FLAGS": "", "PYTHONPATH": str(ROOT)}
    environment.pop("JAX_COMPILATION_CACHE_DIR", None)
    command = [sys.executable, "-c", measured, *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, text=True, capture_output=True, check=False)
    output = done.stdout + done.stderr
    assert done.returncode == 0, output
    sys.stdout.write(output)
    return output, int(re.search(r"PEAK (\d+)", output)[1])


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """InternVL2-1B as released, in bfloat16; the tokenizer is a small one."""
    root = tmp_path_factory.mktemp("full")
    released.write_random(root / "InternVL2-1B", "1b", tiny.tokenizer())
    return root


LOAD = """
import sys, numpy as np, vlm_jax
model = vlm_jax.load(sys.argv[1])
picture = np.random.default_rng(0).integers(0, 256, (1, 2, 448, 448, 3), dtype=np.uint8)
image = model.tokenizer.token_id("<IMG_CONTEXT>")
tokens = np.array([[5, 6, *[image] * 512, 7, 8, 9]], np.int32)
logits = np.asarray(model.logits(tokens, picture))
print("LOGITS", logits.shape, logits.dtype, float(np.abs(logits).max()))
"""


def test_it_loads_and_computes_in_ten_gibibytes(folder):
    output, peak = run("-c", LOAD, folder / "InternVL2-1B", folder=folder)
    assert "LOGITS (1, 517, 151655) float32" in output
    assert peak < 10 * GIB


@pytest.mark.torch
def test_it_equals_the_reference(folder):
    """Conversion to the other layout, and logits and 64 greedy tokens against `transformers` in float32."""
    pytest.importorskip("transformers")
    command = ["-m", "vlm_jax.convert", "--source=InternVL2-1B", "--target=hf", "--layout=hf", "--verify"]
    output, _ = run(*command, folder=folder)
    assert f"{released.PARAMETERS['1b']:,}" in output
    assert float(re.search(r"of logits (\S+),", output)[1]) <= 1e-3


def overrides(rows, tokens, tiles):
    stage = {"rows": rows, "tokens": tokens, "tiles": tiles}
    return [
        *(f"--config.stages[0].data.{name}={value}" for name, value in stage.items()),
        "--config.stages[0].steps=1",
        "--config.stages[0].optimizer.warmup_steps=0",
        "--config.stages[0].optimizer.warmup_ratio=0.0",
        "--config.compute.dtype=float32",
    ]


def losses(folder):
    return [json.loads(line)["loss"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_one_step_of_align(folder):
    meta = write_meta(folder / "data", captions={"max_dynamic_patch": 2}, pairs={"max_dynamic_patch": 3})
    command = ["-m", "vlm_jax.main", f"--config={ROOT}/configs/mini_internvl.py:1b,align", "--workdir=align"]
    start = [f"--config.data.train={meta}", "--config.start.model=InternVL2-1B"]
    _, peak = run(*command, *start, *overrides(1, 2048, 7), folder=folder)
    assert peak < 12 * GIB
    assert len(losses(folder / "align")) == 1


def test_one_step_of_tune_with_a_shallow_decoder(folder):
    released.write_random(folder / "shallow", "1b", tiny.tokenizer(), num_hidden_layers=4)
    meta = write_meta(folder / "data", captions={"max_dynamic_patch": 2}, pairs={"max_dynamic_patch": 3})
    command = ["-m", "vlm_jax.main", f"--config={ROOT}/configs/mini_internvl.py:1b,tune", "--workdir=tune"]
    start = [f"--config.data.train={meta}", "--config.start.model=shallow"]
    run(*command, *start, *overrides(1, 2048, 7), folder=folder)
    assert len(losses(folder / "tune")) == 1
