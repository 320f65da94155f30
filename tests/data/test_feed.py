"""Processes that make batches end with the one that asked for them."""

import os
import signal
import subprocess
import sys
import textwrap
import time


def test_nothing_is_left_after_a_kill(tmp_path):
    script = tmp_path / "feed.py"
    script.write_text(
        textwrap.dedent(
            """
            import multiprocessing, time
            from vlm_jax.data import feed, prepare, sources
            from vlm_jax.data.layouts.closest_aspect import ClosestAspect
            from vlm_jax.data.plan import mixture
            from vlm_jax.data.text import templates, tokenizer
            from vlm_jax.data.conversation import Conversation, Turn

            if __name__ == "__main__":
                words = tokenizer.Tokenizer.train(["a b c"], 300)
                template, layout = templates.TEMPLATES["internvl2"], ClosestAspect(tile_size=28)
                preparer = prepare.Preparer(words, template, layout, 14, 2, 500)
                data = sources.MemorySource([Conversation((Turn("user", "a"), Turn("assistant", "b")))])
                config = mixture.MixtureConfig(rows=1, tokens=500, tiles=2)
                seen = feed.batches(data, preparer, config, 0, workers=1)
                next(seen), next(seen)
                print(*(child.pid for child in multiprocessing.active_children()), flush=True)
                time.sleep(60)
            """
        )
    )
    process = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    workers = [int(pid) for pid in process.stdout.readline().split()]
    shared = {file for pid in (process.pid, *workers) for file in shared_memory(pid)}
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert workers
    deadline = time.monotonic() + 10
    while any(alive(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(alive(pid) for pid in workers)
    assert shared
    while any(map(os.path.exists, shared)) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not any(map(os.path.exists, shared))


def shared_memory(pid):
    """Files of shared memory that a process has mapped (others on the machine have some, too)."""
    with open(f"/proc/{pid}/maps") as file:
        return {line.split()[-1] for line in file if "/dev/shm/psm_" in line}


def alive(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
