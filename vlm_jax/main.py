"""Trains, evaluates, reports and exports, in one command.

  python -m vlm_jax.main --config=FILE[:ARGUMENT] --workdir=DIR [--config.FIELD=VALUE ...]

  --config=FILE[:ARGUMENT]   the recipe; those there are stand below, with what they do and how long they take
  --workdir=DIR              where everything is written
  --config.FIELD=VALUE       changes a field of the recipe; may be given many times
  --help                     this text; with --config=FILE, all that is to be said about that recipe

Examples:
  python -m vlm_jax.main --config=configs/pocket.py:quick --workdir=runs/quick
  python -m vlm_jax.main --config=configs/pocket.py --workdir=runs/second --config.seed=1
  python -m vlm_jax.main --config=configs/pocket.py --workdir=runs/short '--config.stages[0].steps=50'

A run that was stopped or killed is continued by the same command. What its numbers depend on cannot be changed
meanwhile: that is a run of its own, in another DIR. DIR/config.json lists every field there is to change.

At the end DIR holds
  report.html        scores, curves, and pictures with questions and answers; open it in a browser
  report.json        the same figures for programs
  export/            the model, as a folder that the transformers library loads
  and config.json, checkpoints/, metrics.jsonl and events/ (for TensorBoard), which are there from the start;
and this talks with the model:
  python -m vlm_jax.chat --model=DIR --image=FILE
"""

from __future__ import annotations

import re
import sys
import textwrap
import traceback
from pathlib import Path
from typing import TYPE_CHECKING

from vlm_jax import cli
from vlm_jax.errors import UserError
from vlm_jax.recipe_files import check_recipe, describe, find_recipes

if TYPE_CHECKING:
    import ml_collections
    from absl import flags


def main(arguments: list[str]) -> int:
    """Reads the flags, builds the recipe and runs it."""
    if {"--help", "-h", "-help", "--helpfull", "--helpshort"}.intersection(arguments):
        sys.stdout.write(_help(_given(arguments, "config")))
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
      UserError: a flag, the config file, its argument or an overridden field is not there or of the wrong type.
    """
    recipe = _given(arguments, "config")
    if not recipe or not _given(arguments, "workdir"):
        raise UserError("both --config=FILE and --workdir=DIR are needed (--help says what recipes there are)")
    check_recipe(recipe)
    file = Path(recipe.split(":", 1)[0])
    try:
        values = _read_flags(arguments)
        return values.config, values.workdir
    except UserError:
        raise
    except Exception as error:  # noqa: BLE001  (a config file may raise anything)
        raise UserError(_complaint(error, file, recipe, arguments)) from None


def _given(arguments: list[str], name: str) -> str:
    """The last value of a flag, given as `--name=value` or `--name value`; '' where there is none."""
    value = ""
    for argument, after in zip(arguments, [*arguments, ""][1:], strict=True):
        flag, sign, own = argument.partition("=")
        if flag in (f"--{name}", f"-{name}"):
            value = own if sign else after * (not after.startswith("-"))
    return value


def _without(arguments: list[str], name: str) -> list[str]:
    """The arguments without a flag, which is given as `--name=value` or `--name value`."""
    names = (f"--{name}", f"-{name}")
    pairs = zip(["", *arguments], arguments, strict=False)
    return [word for before, word in pairs if word.partition("=")[0] not in names and before not in names]


def _read_flags(arguments: list[str]) -> flags.FlagValues:
    """The flags, among them the config with its overrides; runs the config file."""
    from absl import flags
    from ml_collections import config_flags

    from vlm_jax.overrides import new_types, with_types

    values = flags.FlagValues()
    argv = ["main", *arguments]
    if types := new_types(arguments):
        from vlm_jax.training.recipe import Recipe

        config = with_types(Recipe, _read_flags([f"--config={_given(arguments, 'config')}"]).config, types)
        argv = _without(argv, "config")
        config_flags.DEFINE_config_dict("config", config, "recipe", flag_values=values, sys_argv=argv)
    else:
        config_flags.DEFINE_config_file("config", None, "recipe", flag_values=values, sys_argv=argv)
    flags.DEFINE_string("workdir", None, "output folder", flag_values=values)
    rest = values(argv)[1:]
    if rest:
        raise UserError(f"unexpected argument '{rest[0]}' (flags look like --name=value)")
    return values


def _complaint(error: Exception, file: Path, recipe: str, arguments: list[str]) -> str:
    """What went wrong while flags and config file were read, and where."""
    from absl import flags

    from vlm_jax.overrides import new_types

    lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if Path(frame.filename) == file]
    if lines:
        return f"{file}, line {lines[-1]}: {type(error).__name__}: {_unquoted(error)}"
    overrides = [argument for argument in arguments if argument.startswith(("--config.", "-config."))]
    types = [f"--config{path}.type={name}" for path, name in new_types(arguments).items()]
    if overrides and (found := _wrong_override(error, overrides, _read_flags([f"--config={recipe}", *types]).config)):
        return found
    if isinstance(error, flags.Error) and "Traceback" in str(error):  # ml_collections puts it into its message
        return f"{file}: {_unquoted(str(error).strip().splitlines()[-1])}"
    if isinstance(error, flags.Error):
        return _unquoted(error)
    return f"{' '.join(overrides) or file}: {_unquoted(error)}"


def _wrong_override(error: Exception, overrides: list[str], config: ml_collections.ConfigDict) -> str:
    """What is wrong with the first override that cannot be carried out; '' if each one can."""
    from vlm_jax.overrides import missing_field, wrong_value

    for override in overrides:
        path = override.lstrip("-").partition("=")[0]
        if problem := missing_field(config, path):
            return problem
        refused = re.match(rf"flag --{re.escape(path)}=(.*?): ", str(error), re.DOTALL)  # absl's words
        if refused and (problem := wrong_value(config, path, refused[1])):
            return problem
    return ""


def _unquoted(error: BaseException | str) -> str:
    """An exception's message without the line breaks and nested quotes that ml_collections puts into it."""
    return str(error).replace("\\n", ". ").replace("\n", ". ").translate(str.maketrans("", "", "\\'\""))


def _help(recipe: str) -> str:
    """About the command and all recipes, or about one recipe."""
    if recipe:
        path = Path(recipe.split(":", 1)[0])
        check_recipe(str(path))
        return describe(path, whole=True)
    recipes = find_recipes()
    if not recipes:
        return f"{__doc__}\nRecipes are the files of configs/ in the source code; none is here.\n"
    return f"{__doc__}\nRecipes:\n" + "".join(textwrap.indent(describe(path), "  ") for path in recipes)


if __name__ == "__main__":
    cli.ask_for_huge_pages("vlm_jax.main")
    cli.run(main)
