"""What code imports, seen in an interpreter of its own."""

import os
import subprocess
import sys
from pathlib import Path

_ROOT = Path(__file__).parents[1]


def imported_by(code: str, *modules: str, arguments: tuple = (), cwd: Path = _ROOT) -> set[str]:
    """Those of `modules` that are imported after `code` has run.

    Args:
      code: statements; what they print is passed on to this process's output, where `capsys` sees it.
      modules: names as in `sys.modules`.
      arguments: of the program, as `sys.argv[1:]`.
      cwd: where it runs; this `vlm_jax` is imported wherever that is.
    """
    report = f"\nimport sys\nprint(*({set(modules)!r} & {{*sys.modules}}))"
    environment = {**os.environ, "PYTHONPATH": str(_ROOT)}
    command = [sys.executable, "-c", code + report, *map(str, arguments)]
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    *printed, last = done.stdout.splitlines()
    sys.stdout.write("".join(f"{line}\n" for line in printed))
    sys.stderr.write(done.stderr)
    return set(last.split())
