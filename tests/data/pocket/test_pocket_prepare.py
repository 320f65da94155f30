import collections
import filecmp
import json
import os
import signal
import subprocess
import sys
import time

import pytest

from tests.imports import imported_by
from vlm_jax.data.formats.tfds import TFDSSource
from vlm_jax.data.pocket.builder import Pocket
from vlm_jax.data.pocket.jobs import Drawer, make_jobs
from vlm_jax.data.pocket.prepare import prepare_pocket
from vlm_jax.data.pocket.presets import PRESETS
from vlm_jax.data.pocket.scene import TASKS
from vlm_jax.data.processes import in_order
from vlm_jax.errors import UserError


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """The folder of a tiny data set and the lines said meanwhile."""
    lines = []
    return prepare_pocket(tmp_path_factory.mktemp("data"), "tiny", 0, progress=lines.append), lines


def run_python(code, **kwargs):
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, **kwargs)


def test_splits_hold_what_the_preset_says(prepared):
    for split, counts in PRESETS["tiny"].records.items():
        source = TFDSSource(prepared[0], split)
        tasks = [source[k].task for k in range(len(source))]
        assert dict(collections.Counter(tasks)) == counts


def test_a_stored_conversation_reads_back_as_drawn(prepared):
    source = TFDSSource(prepared[0], "test")
    stored = {source[k].id: source[k] for k in range(len(source))}
    (drawn,) = in_order(Drawer(0), make_jobs("test", "chart", 8), workers=0)
    assert [stored[record.conversation.id] for record in drawn] == [record.conversation for record in drawn]


def test_provenance_is_stored(prepared):
    import tensorflow_datasets as tfds

    source = tfds.builder_from_directory(str(prepared[0])).as_data_source("test")
    keys = {key for k in range(len(source)) for key in json.loads(source[k]["provenance"])}
    assert keys == {"digits", "regions", "content"}


def test_progress_is_told_from_first_to_last(prepared):
    total = PRESETS["tiny"].total
    assert f"0/{total}" in prepared[1][0]
    assert f"{total}/{total}" in prepared[1][-1]


def test_it_is_built_once(prepared):
    before = {file: file.stat().st_mtime_ns for file in prepared[0].iterdir()}
    said = []
    assert prepare_pocket(prepared[0].parents[2], "tiny", 0, progress=said.append) == prepared[0]
    assert {file: file.stat().st_mtime_ns for file in prepared[0].iterdir()} == before
    assert not said


def test_another_process_with_workers_writes_the_same_bytes_without_tensorflow(prepared, tmp_path):
    code = (
        "from vlm_jax.data.pocket import prepare; prepare.IN_PROCESS = 0; prepare._cores = lambda: 2\n"
        f"prepare.prepare_pocket({str(tmp_path)!r}, 'tiny', 0)"
    )
    assert imported_by(code, "tensorflow", "jax", "torch") == set()
    other = tmp_path / prepared[0].relative_to(prepared[0].parents[2])
    names = sorted(file.name for file in prepared[0].iterdir())
    assert names == sorted(file.name for file in other.iterdir())
    assert filecmp.cmpfiles(prepared[0], other, names, shallow=False) == (names, [], [])


@pytest.mark.skipif(not os.path.isdir("/proc"), reason="looks for child processes in /proc")
def test_killed_while_drawing_it_leaves_no_process_and_the_next_run_completes(prepared, tmp_path):
    code = (
        "from vlm_jax.data.pocket import prepare; prepare._cores = lambda: 2;"
        f"prepare.SECONDS_BETWEEN_LINES = 0; prepare.prepare_pocket({str(tmp_path)!r}, 'quick', 0, "
        "lambda line: print(line, flush=True))"
    )
    process = run_python(code)
    process.stdout.readline()
    process.stdout.readline()  # some are drawn
    children = children_of(process.pid)
    assert len(children) == 2
    process.send_signal(signal.SIGKILL)
    process.wait()
    process.stdout.close()
    assert not (tmp_path / "pocket").exists()
    assert (tmp_path / ".pocket.incomplete").exists()
    # The half-written one is cleared away by a run of any preset.
    folder = prepare_pocket(tmp_path, "tiny", 0)
    assert len(TFDSSource(folder, "train")) == len(TFDSSource(prepared[0], "train"))
    assert sorted(path.name for path in tmp_path.iterdir()) == [".pocket.lock", "pocket"]
    deadline = time.monotonic() + 10
    while any(map(alive, children)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(map(alive, children))


def test_a_folder_without_its_description_is_built_anew(tmp_path):
    half = tmp_path / "pocket" / "tiny_0" / str(Pocket.VERSION)
    half.mkdir(parents=True)
    (half / "pocket-train.array_record-00000-of-00001").write_bytes(b"half")
    assert len(TFDSSource(prepare_pocket(tmp_path, "tiny", 0), "train")) == sum(
        PRESETS["tiny"].records["train"].values()
    )


def test_a_dead_worker_is_an_error(monkeypatch):
    monkeypatch.setenv("PYTHONHASHSEED", "no number")  # a child interpreter refuses to start
    with pytest.raises(RuntimeError, match="ended with code 1"):
        list(in_order(Drawer(0), make_jobs("test", "digits", 4), workers=1))


def test_a_mistake_in_a_worker_is_raised_here():
    with pytest.raises(ValueError, match=r"not in tuple|not in list"):
        list(in_order(Drawer(0), make_jobs("test", "juggling", 4), workers=1))


@pytest.mark.parametrize(("preset", "seed", "message"), [("huge", 0, "no preset 'huge'"), ("tiny", -1, "negative")])
def test_a_wrong_argument_is_one_line(tmp_path, preset, seed, message):
    with pytest.raises(UserError, match=message):
        prepare_pocket(tmp_path, preset, seed)


def test_a_folder_that_is_a_file_is_one_line(tmp_path):
    (tmp_path / "data").write_text("")
    with pytest.raises(UserError, match="data: cannot write the pocket data set"):
        prepare_pocket(tmp_path / "data", "tiny", 0)


def test_presets_grow():
    sizes = [PRESETS[name].total for name in ("tiny", "quick", "default")]
    assert sizes == sorted(sizes)
    assert PRESETS["default"].records["test"] == dict.fromkeys(TASKS, 200)


def children_of(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def alive(pid):
    """Whether the process runs; a zombie that nobody has waited for yet does not."""
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False
