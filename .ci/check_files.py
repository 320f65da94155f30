"""Checks text files that are to be committed: one newline at the end, no white space before it, no file too large.

python .ci/check_files.py FILE...        (pre-commit and .ci/run give it the files)
"""

import sys
from pathlib import Path

MAX_BYTES = 500_000
EXAMPLES_MAX_BYTES = 20 * 2**20  # trained weights and their report
BINARY = {".png", ".ico", ".npz", ".gz", ".safetensors"}
TRAILING_SPACE_ALLOWED = {".md"}  # two spaces are a line break there


def problems(path: Path) -> list[str]:
    """What is wrong with one file, each as `file: what`."""
    content = path.read_bytes()
    found = []
    published = path.parts[0] == "examples" and len(path.parts) > 2  # a run's own files, whose form is as it is
    limit = EXAMPLES_MAX_BYTES if published else MAX_BYTES
    if len(content) > limit:
        found.append(f"{path}: {len(content):,} bytes, the limit is {limit:,}")
    if path.suffix in BINARY or published or not content:
        return found
    if not content.endswith(b"\n") or content.endswith(b"\n\n"):
        found.append(f"{path}: must end with exactly one newline")
    for number, line in enumerate(content.split(b"\n"), start=1):
        if line.endswith(b"\r"):
            found.append(f"{path}:{number}: Windows line end")
        elif line != line.rstrip() and path.suffix not in TRAILING_SPACE_ALLOWED:
            found.append(f"{path}:{number}: white space at the end of the line")
        if line.startswith((b"<<<<<<< ", b">>>>>>> ")):
            found.append(f"{path}:{number}: unresolved merge")
    return found


if __name__ == "__main__":
    all_problems = [problem for name in sys.argv[1:] if Path(name).is_file() for problem in problems(Path(name))]
    sys.stdout.write("".join(f"{problem}\n" for problem in all_problems))
    sys.exit(1 if all_problems else 0)
