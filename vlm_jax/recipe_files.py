"""What a recipe's file says of itself, read without running it: `--help` and mistakes are answered at once.

A recipe is a Python file whose `get_config(argument)` returns a config. It says what it is in its docstring, and what
arguments it takes in a table of the module:

    ARGUMENTS = {
        "": ("the whole road", "20 minutes on two CPU cores"),
        "quick": ("the same road, a few steps each", "2 minutes on two CPU cores"),
    }

Argument → what it does, and how long it takes on what. The table is a literal, because it is read and not run. It does
not go stale: an argument that is not in it is refused (`check_recipe`), and `tests/test_recipe_files.py` makes the
config of every one that is. A file without the table takes any argument.
"""

from __future__ import annotations

import ast
import dataclasses
import difflib
import textwrap
from collections.abc import Mapping
from pathlib import Path

from vlm_jax.errors import UserError, did_you_mean

WIDTH = 110
"""Columns of `describe`'s text."""


@dataclasses.dataclass(frozen=True)
class RecipeFile:
    """A recipe's file, as it describes itself.

    Attributes:
      path: the file.
      doc: its docstring.
      arguments: argument → what it does, how long it takes; None where the file has no table.
      default: what `get_config` takes when no argument is given; None where that cannot be read.
    """

    path: Path
    doc: str
    arguments: Mapping[str, tuple[str, str]] | None
    default: str | None


def read_recipe(path: Path) -> RecipeFile:
    """Reads, and does not run, a recipe's file.

    Raises:
      UserError: it cannot be read, is not Python, has no `get_config`, or a table `ARGUMENTS` of another form.
    """
    try:
        tree = ast.parse(path.read_text(encoding="utf-8"))
    except SyntaxError as error:
        if path.suffix != ".py":
            raise UserError(f"{path}: not a recipe, which is a Python file") from None
        raise UserError(f"{path}, line {error.lineno or 1}: {error.msg}") from None
    except (OSError, ValueError) as error:  # no text, or null bytes in it
        raise UserError(f"{path}: cannot be read as a Python file: {error}") from None
    named = {name: node for node in tree.body for name in _names(node)}
    if "get_config" not in named:
        raise UserError(f"{path}: not a recipe, it has no function get_config")
    arguments = _arguments(path, named["ARGUMENTS"]) if "ARGUMENTS" in named else None
    return RecipeFile(path, ast.get_docstring(tree) or "", arguments, _default(named["get_config"]))


def check_recipe(given: str) -> None:
    """Looks whether there is such a file, and whether it takes such an argument, before anything runs.

    Args:
      given: `FILE[:ARGUMENT]`, the value of `--config`.

    Raises:
      UserError: with what there is, and what was probably meant.
    """
    file, colon, argument = given.partition(":")
    path = Path(file)
    if not path.is_file():
        raise UserError(f"--config={file}: {_no_such_file(path)}")
    recipe = read_recipe(path)
    if colon and recipe.arguments is not None and argument not in recipe.arguments:
        raise UserError(
            f"{given}: no argument '{argument}'{did_you_mean(argument, recipe.arguments)}; there are "
            f"{', '.join(repr(name) for name in recipe.arguments)} (--help --config={file} says what they do)"
        )


def find_recipes() -> list[Path]:
    """Files of recipes: those in `configs/` here or, elsewhere, those of the source code that the package lies in.

    Those of folders inside it (`configs/systems/`) come last.
    """
    source = Path(__file__).resolve().parents[1]
    below = source.is_relative_to(Path.cwd())
    for root in (Path(), source.relative_to(Path.cwd()) if below else source):
        found = sorted((root / "configs").glob("**/*.py"), key=lambda path: (len(path.parts), path))
        if recipes := [path for path in found if "def get_config" in path.read_text(encoding="utf-8", errors="ignore")]:
            return recipes
    return []


def describe(path: Path, *, whole: bool = False) -> str:
    """A recipe and its arguments, as `--help` shows them: with the first line of its docstring or the `whole` of it."""
    try:
        recipe = read_recipe(path)
    except UserError as error:  # a help text tells of the others all the same
        return f"{path}\n    ({error})\n"
    lines = [str(path)]
    for line in recipe.doc.splitlines()[: None if whole else 1]:
        lines += textwrap.wrap(line, WIDTH - 4) if not whole else [line]
    text = lines[0] + "\n" + textwrap.indent("\n".join(lines[1:]) + "\n" if lines[1:] else "", "    ")
    rows = recipe.arguments or {}
    if whole and rows:
        text += "\n"
    wide = max((len(name) for name in rows), default=0) + 1
    for name, (what, time) in rows.items():
        mark = "(the default) " if name and name == recipe.default else ""
        head = f"      {':' + name if name else '':<{wide}}  "
        row = textwrap.wrap(f"{mark}{what}; {time}", WIDTH - len(head)) or [""]
        text += head + ("\n" + " " * len(head)).join(row) + "\n"
    return text


def _no_such_file(path: Path) -> str:
    known = [str(recipe) for recipe in find_recipes()]
    problem = "this is a folder" if path.is_dir() else "there is no such file"
    if not known:
        return f"{problem}; a recipe is a Python file with a function get_config, as in configs/ of the source code"
    # A name alone is enough to know what is meant, and so is a folder too many or too few.
    names = {Path(name).stem: name for name in known}
    close = difflib.get_close_matches(path.stem, list(names), n=1) if path.name else []
    meant = f" (did you mean {names[close[0]]}?)" if close else ""
    return f"{problem}{meant}; there are {', '.join(known)} (--help says what they do)"


def _names(node: ast.stmt) -> list[str]:
    """What a statement of a module gives a name to."""
    if isinstance(node, ast.FunctionDef):
        return [node.name]
    if isinstance(node, ast.Import | ast.ImportFrom):
        return [alias.asname or alias.name for alias in node.names]
    targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
    return [target.id for target in targets if isinstance(target, ast.Name)]


def _arguments(path: Path, node: ast.stmt) -> dict[str, tuple[str, str]]:
    wrong = f"{path}, line {node.lineno}: ARGUMENTS must be a literal {{'argument': ('what it does', 'how long')}}"
    try:
        table = ast.literal_eval(node.value)  # type: ignore[attr-defined]
    except (ValueError, AttributeError):  # it is computed, or it is not an assignment
        raise UserError(wrong) from None
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table):
        raise UserError(wrong)
    for row in table.values():
        if not isinstance(row, tuple) or [type(text) for text in row] != [str, str]:
            raise UserError(wrong)
    return table


def _default(node: ast.stmt) -> str | None:
    """What `get_config` has as the default of its argument."""
    defaults = node.args.defaults if isinstance(node, ast.FunctionDef) else []
    value = defaults[0].value if defaults and isinstance(defaults[0], ast.Constant) else None
    return value if isinstance(value, str) else None
