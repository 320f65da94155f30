"""Trains, evaluates, reports and exports: `python -m vlm_jax.main --config=configs/pocket.py --workdir=runs/pocket`.

--config=FILE[:ARG]         a recipe (configs/*.py); ARG is passed to it, as in configs/pocket.py:quick
--workdir=DIR               where everything is written; the same command continues an unfinished run
--config.FIELD=VALUE        overrides any field, as in --config.stages[0].steps=500 or --config.seed=1

DIR receives config.json, checkpoints/, metrics.jsonl, TensorBoard events/, report.json, report.html and
export/ (a folder that the transformers library loads).
"""

from __future__ import annotations

import sys
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_jax import cli
from vlm_jax.errors import UserError

if TYPE_CHECKING:
    import ml_collections


def main(arguments: list[str]) -> int:
    """Reads the flags, builds the recipe and runs it."""
    if {"--help", "-h", "--helpfull", "--helpshort"}.intersection(arguments):
        sys.stdout.write(__doc__ + _configs())
        return 0
    sys.stdout.write("vlm_jax: reading the recipe\n")
    sys.stdout.flush()
    config, workdir = parse(arguments)
    from vlm_jax.config import build
    from vlm_jax.run import run
    from vlm_jax.training.recipe import Recipe

    run(build(Recipe, config), workdir)
    return 0


def parse(arguments: list[str]) -> tuple[ml_collections.ConfigDict, str]:
    """The config (with its overrides) and the workdir.

    Raises:
      UserError: a flag, the config file or an overridden field is not there or of the wrong type.
    """
    from absl import flags
    from ml_collections import config_flags

    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", None, "recipe", flag_values=values, sys_argv=["main", *arguments])
    flags.DEFINE_string("workdir", None, "output folder", flag_values=values)
    given = {a.split("=", 1)[0]: a.split("=", 1)[-1] for a in arguments}
    if not given.get("--config") or not given.get("--workdir"):
        raise UserError("both --config=FILE and --workdir=DIR are needed (see --help)")
    file = given["--config"].split(":", 1)[0]
    if not Path(file).is_file():
        raise UserError(f"--config={file}: there is no such file (--help lists recipes)")
    try:
        rest = values(["main", *arguments])[1:]
        if rest:
            raise UserError(f"unexpected argument '{rest[0]}' (flags look like --name=value)")
        return values.config, values.workdir
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  (a config file may raise anything)
        raise UserError(_complaint(error, Path(file), arguments)) from None


def _complaint(error: Exception, file: Path, arguments: list[str]) -> str:
    """What went wrong while flags and config file were read, and where."""
    from absl import flags

    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    if isinstance(error, SyntaxError):
        return f"{file}, line {error.lineno}: {error.msg}"
    if lines:
        return f"{file}, line {lines[-1]}: {type(error).__name__}: {_unquoted(error)}"
    if isinstance(error, flags.Error):
        return " ".join(str(error).split())
    overrides = " ".join(a for a in arguments if a.startswith("--config."))
    absent = "no such field: " if isinstance(error, AttributeError | KeyError | IndexError) else ""
    return f"{overrides or file}: {absent}{_unquoted(error)}"


def _unquoted(error: BaseException) -> str:
    """An exception's message without the line breaks and nested quotes that ml_collections puts into it."""
    return str(error).replace("\\n", ". ").replace("\n", ". ").translate(str.maketrans("", "", "\\'\""))


def _configs() -> str:
    """The recipes beside the working directory, with the first line of what each says of itself."""
    import ast

    lines = []
    for path in sorted(Path("configs").glob("**/*.py")):
        doc = ast.get_docstring(ast.parse(path.read_text())) or ""
        lines.append(f"  {path!s:<28}{doc.splitlines()[0] if doc else ''}\n")
    return "\nRecipes here:\n" + "".join(lines) if lines else ""


if __name__ == "__main__":
    cli.ask_for_huge_pages("vlm_jax.main")
    cli.run(main)
