"""`python -m vlm_jax.data.recipes RECIPE --...`: makes data sets of other data sets."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from vlm_jax import cli
from vlm_jax.errors import UserError, did_you_mean

RECIPES = {
    "ocr": "pictures with text -> conversations that ask for the text (LLaVAR)",
    "core-set": "a small balanced part that covers the most concepts (SVIT)",
    "mix": "at most so many records of each source, and a histogram (Yi-VL)",
    "edit": "sources dropped, replaced, added and capped, by a list of edits (LLaVA-NeXT, SVIT)",
    "vqa": "questions about pictures, or their captions -> conversations (VQAv2, COCO, LLaVA-1.5)",
    "coco": "COCO's captions and boxes -> contexts for `write`",
    "write": "conversations that a large model writes, at an OpenAI-compatible endpoint (LLaVA, LLaVAR, SVIT, BLIP)",
}
"""What there is, with a line for `--help`; the module `commands.NAME` has `HELP`, `add_flags(parser)`, `run(flags)`."""

_HELP = """\
Makes data sets of other data sets. Every recipe is deterministic: the same input, flags and seed give the same bytes.

recipes:
{recipes}

`python -m vlm_jax.data.recipes RECIPE --help` tells about one. What they write can be checked and looked at:

  python -m vlm_jax.data.check --data=OUT
  python -m vlm_jax.data.show --data=OUT --out=look
"""


def main(argv: Sequence[str]) -> int:
    """Runs a recipe with these arguments.

    Raises:
      UserError: a recipe that is not known, or what the recipe raises.
    """
    width = max(map(len, RECIPES))
    listed = "\n".join(f"  {name:<{width}}  {line}" for name, line in RECIPES.items())
    if not argv or argv[0].startswith("-"):
        parser = cli.ArgumentParser(
            prog="python -m vlm_jax.data.recipes",
            usage="%(prog)s RECIPE --...",
            description=_HELP.format(recipes=listed),
        )
        parser.parse_args(argv[:1])
        raise UserError(f"which recipe? There are {', '.join(RECIPES)} (`--help` tells about them)")
    name = argv[0]
    if name not in RECIPES:
        raise UserError(f"no recipe '{name}'{did_you_mean(name, RECIPES)}; there are {', '.join(RECIPES)}")
    command = importlib.import_module(f"vlm_jax.data.recipes.commands.{name.replace('-', '_')}")
    parser = cli.ArgumentParser(prog=f"python -m vlm_jax.data.recipes {name}", description=command.HELP)
    command.add_flags(parser)
    return command.run(parser.parse_args(argv[1:]))


if __name__ == "__main__":
    cli.run(main)
