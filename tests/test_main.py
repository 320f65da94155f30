"""The launcher as a user meets it: whole runs of the tiny recipe in processes of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.conftest import QUICK_COMPILE
from tests.imports import imported_by
from vlm_jax import main, recipe_files
from vlm_jax.checkpoints import complete, read_params
from vlm_jax.config import build
from vlm_jax.errors import UserError
from vlm_jax.training.recipe import Recipe

ROOT = Path(__file__).parents[1]
CONFIG = f"--config={ROOT}/configs/pocket.py:tiny"
OFTEN = "--config.runtime.checkpoint_seconds=0.0"


@pytest.fixture(scope="module")
def launch():
    """Starts the launcher; what one compiles, the others find in the cache of `conftest.py`."""
    environment = os.environ | {
        "XLA_FLAGS": QUICK_COMPILE,
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "TF_CPP_MIN_LOG_LEVEL": "3",
    }

    started = []

    def start(*arguments):
        command = [sys.executable, "-m", "vlm_jax.main", *map(str, arguments)]
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        started.append(process)
        return process

    yield start
    for process in started:
        if process.poll() is None:  # its test has failed
            os.killpg(process.pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def finished(launch, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    began = time.monotonic()
    process = launch(CONFIG, f"--workdir={folder}")
    first = process.stdout.readline()
    until_first = time.monotonic() - began
    output = first + process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    return folder, output, until_first


def last_params(folder):
    return read_params(folder / "checkpoints")[0]


def assert_same_end(folder, finished):
    jax.tree.map(np.testing.assert_array_equal, last_params(folder), last_params(finished[0]))


def processes_of(group):
    """Command lines of the processes that still belong to a process group."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            fields = (entry / "stat").read_text().rsplit(")", 1)[1].split()
            if int(fields[2]) == group and fields[0] != "Z":
                found.append((entry / "cmdline").read_text())
        except OSError:
            continue
    return found


@pytest.mark.slow
def test_writes_what_it_promises(finished):
    folder, output, until_first = finished
    assert until_first < 10
    report = json.loads((folder / "report.json").read_text())
    assert set(report["tasks"]) == {"digits", "count", "document", "chart", "point", "photo"}
    for task in report["tasks"].values():
        assert task["n"] == 4
        assert set(task["baselines"]) == {"majority", "blank"}
    assert list(report["stages"]) == ["read", "find", "teacher", "distill", "align", "tune"]
    assert 5 < report["wall_seconds"] < 300
    for name in ("config.json", "metrics.jsonl", "report.html", "events", "export/model.safetensors", "tokenizer"):
        assert (folder / name).exists(), name
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert steps[-1]["number"] == sum(stage.steps for stage in main.parse([CONFIG, "--workdir=w"])[0].stages)
    assert "vlm_jax.chat" in output


@pytest.mark.slow
def test_finished_run_says_so_and_changes_nothing(finished, launch):
    folder, _, _ = finished
    before = (folder / "report.json").stat().st_mtime_ns
    process = launch(CONFIG, f"--workdir={folder}")
    output = process.communicate(timeout=60)[0]
    assert process.returncode == 0
    assert "is finished" in output
    assert (folder / "report.json").stat().st_mtime_ns == before


def wait_for(condition, process, seconds=120):
    """Until `condition` holds; a launcher that ends before is a failure that shows its output."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.01)


def end_by(signal_number, process):
    """Ends the launcher and returns its exit code and what it still printed; nothing of it may stay behind."""
    if signal_number == signal.SIGKILL:
        os.killpg(process.pid, signal_number)
    else:
        process.send_signal(signal_number)
    output = process.communicate(timeout=120)[0]
    deadline = time.monotonic() + 10
    while processes_of(process.pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert processes_of(process.pid) == []
    return process.returncode, output


@pytest.mark.slow
def test_killed_and_stopped_on_the_way_ends_with_the_same_bits(finished, launch, tmp_path):
    arguments = CONFIG, f"--workdir={tmp_path}", OFTEN

    process = launch(*arguments)
    # The data set is half written.
    wait_for(lambda: any(p.is_file() for p in tmp_path.glob("data/.pocket.incomplete/**/*")), process)
    end_by(signal.SIGKILL, process)
    assert not list(tmp_path.glob("data/pocket*"))

    process = launch(*arguments)
    wait_for(lambda: len(complete(tmp_path / "checkpoints")) >= 2, process)
    end_by(signal.SIGKILL, process)

    process = launch(*arguments, "--config.runtime.log_seconds=0.0", "--config.runtime.workers=1")
    lines = []
    for line in process.stdout:
        lines.append(line)
        if line.lstrip().startswith(("read", "find", "teacher")):
            break
    code, rest = end_by(signal.SIGTERM, process)
    output = "".join([*lines, rest])
    assert code == 130, output
    assert "continuing from checkpoint" in output
    assert "run the same command again: python -m vlm_jax.main --config=" in output
    assert not (tmp_path / "report.json").exists()

    process = launch(*arguments)
    output = process.communicate(timeout=300)[0]
    assert process.returncode == 0, output
    assert "continuing from checkpoint" in output
    assert_same_end(tmp_path, finished)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--config=nowhere.py"], r"nowhere\.py: there is no such file; there are .*pocket\.py"),
        ([CONFIG.replace("pocket", "pockt")], r"did you mean .*configs/pocket\.py\?"),
        ([CONFIG.replace(":tiny", ":qick")], r"pocket\.py:qick: no argument 'qick' \(did you mean 'quick'\?\)"),
        ([CONFIG.replace(":tiny", ":huge")], r"there are '', 'full', 'quick', 'tiny' \(--help --config=\S+ says"),
        (
            [CONFIG, "--config.seeed=1"],
            r"--config\.seeed: config has no 'seeed' \(did you mean 'seed'\?\); there are co",
        ),
        ([CONFIG, "--config.stages[0].stepz=1"], r"config\.stages\[0\] has no 'stepz' \(did you mean 'steps'\?\)"),
        ([CONFIG, "--config.stages[9].steps=1"], r"stages has no \[9\]; there are \[0\] read, \[1\] find"),
        # What is right before it is not blamed.
        (
            [CONFIG, "--config.seed=1", "--config.stages[0].steps=many"],
            r"\.steps=many: must be a whole number; .* has 2",
        ),
        ([CONFIG, "--config.stages[0].optimizer.learning_rate=fast"], r"learning_rate=fast: must be a number"),
        ([CONFIG, "--config.evaluation.split=tset"], r"split: input should be 'validation' or 'test', got 'tset'"),
        # Of a field that is None in the recipe the type comes from the class.
        ([CONFIG, "--config.stages[0].drop_path=much"], r"drop_path: input should be a valid number, got 'much'"),
        ([CONFIG, "--confg=1"], r"confg"),
        ([CONFIG, "extra"], r"extra"),
    ],
)
def test_mistakes_are_one_line_that_names_them(arguments, message, tmp_path):
    with pytest.raises(UserError, match=message) as error:
        main.main([*arguments, f"--workdir={tmp_path / 'w'}"])
    assert "\n" not in str(error.value)
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("def get_config(arg=''):\n    return {}['b']", r"mine\.py, line 2: KeyError: b"),
        ("x = (", r"mine\.py, line 1: "),
        ("import nowhere_to_be_found\nget_config = 1", r"mine\.py, line 1: ModuleNotFoundError"),
        # Nothing of the file is to blame: it is called wrongly.
        ("def get_config(arg):\n    return {}", r"^\S*mine\.py: TypeError: get_config\(\) missing 1 [^\n]*arg$"),
        ("get_config = 3", r"^\S*mine\.py: TypeError: int object is not callable$"),
    ],
)
def test_mistakes_in_a_config_file_name_file_and_line(tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    with pytest.raises(UserError, match=message):
        main.main([f"--config={tmp_path / 'mine.py'}", f"--workdir={tmp_path / 'w'}"])


def test_no_flags(capsys):
    for arguments in ([], [CONFIG], ["--config", "--workdir=x"]):
        with pytest.raises(UserError, match=r"--config=FILE and --workdir=DIR"):
            main.main(arguments)


def test_flags_may_be_written_with_a_space(tmp_path):
    config, workdir = main.parse(
        ["--config", CONFIG.split("=")[1], "--workdir", str(tmp_path), "--config.seed", "3", "--config.seed=4"]
    )
    assert (config.seed, config.name, workdir) == (4, "pocket:tiny", str(tmp_path))


def test_a_field_that_is_none_can_be_overridden(tmp_path):
    config, _ = main.parse([f"--config={ROOT}/configs/tune.py", f"--workdir={tmp_path}", "--config.start.model=m",
                            "--config.stages[0].data.tokens=300", "--config.stages[0].drop_path=0.1"])  # fmt: skip
    stage = build(Recipe, config).stages[0]
    assert (stage.data.tokens, stage.data.tiles, stage.drop_path) == (300, None, 0.1)


def test_help_teaches(capsys, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main.main(["--help"]) == 0
    text = capsys.readouterr().out
    for needed in ("--workdir=DIR", "--config.seed=1", "continued by the same command", "report.html", "export/",
                   "configs/pocket.py\n", ":quick ", ":1b,tune   (the default) ", "configs/tune.py\n"):  # fmt: skip
        assert needed in text
    assert max(map(len, text.splitlines())) <= 120


def test_help_of_one_recipe_and_of_none(capsys, monkeypatch, tmp_path):
    assert main.main(["--help", f"--config={ROOT}/configs/tune.py:all"]) == 0
    text = capsys.readouterr().out
    assert "--config.start.model=runs/pocket" in text  # from its docstring
    assert ":connector" in text
    assert "Examples:" not in text
    with pytest.raises(UserError, match="there is no such file"):
        main.main(["--help", "--config=nowhere.py"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(recipe_files, "__file__", str(tmp_path / "site-packages" / "vlm_jax" / "recipe_files.py"))
    assert main.main(["--help"]) == 0
    assert capsys.readouterr().out.endswith("in the source code; none is here.\n")


def test_help_answers_at_once():
    """Without JAX, and without what reads flags and configs."""
    heavy = ("jax", "numpy", "absl", "ml_collections", "pydantic", "rich")
    assert imported_by("from vlm_jax import main; main.main(['--help'])", *heavy) == set()


@pytest.mark.parametrize("mistake", ["--config.sead=1", "--config.stages[9].steps=1"])
def test_a_mistake_in_flags_ends_with_one_line(launch, tmp_path, mistake):
    process = launch(CONFIG, f"--workdir={tmp_path / 'w'}", mistake)
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2
    assert output.splitlines()[0] == "vlm_jax: reading the recipe"
    assert output.splitlines()[1].startswith(f"error: {mistake.split('=')[0]}: ")
    assert len(output.splitlines()) == 2


@pytest.mark.slow
def test_exit_code_and_line_of_a_mistake(launch, tmp_path):
    process = launch(CONFIG, f"--workdir={tmp_path}", "--config.stages[1].data.tokens=40")
    output = process.communicate(timeout=120)[0]
    assert process.returncode == 2
    assert "Traceback" not in output
    assert output.splitlines()[-1].startswith("error: ")
    assert "tokens" in output.splitlines()[-1]


def test_import_is_cheap():
    code = "import time, sys; import vlm_jax; print(time.process_time(), 'jax' in sys.modules)"
    seconds, has_jax = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout.split()
    assert float(seconds) < 2
    assert has_jax == "False"
