"""`python -m vlm_jax.chat`: ask a model about images, once or in a conversation."""

from __future__ import annotations

import math
import sys
from typing import Any

from vlm_jax import cli
from vlm_jax.errors import UserError

_HELP = """\
Asks a model about images.

--model is a training workdir (its newest checkpoint answers) or a model folder (see vlm_jax.convert).
With --prompt it prints one answer and ends; without, it starts a conversation in which earlier questions, answers and
images are remembered.

examples:
  python -m vlm_jax.chat --model=runs/pocket --image=receipt.png --prompt="What is the total?"
  python -m vlm_jax.chat --model=runs/pocket --image=a.png --image=b.png \\
      --prompt="Image-1: <image> Image-2: <image> Which one is brighter?"
  python -m vlm_jax.chat --model=runs/pocket

A prompt may say with <image> where each image stands; otherwise they come first.
"""

_COMMANDS = """\
Ask anything. Besides:
  /image FILE   put an image before the next question
  /reset        forget the conversation
  /quit         leave (so does Ctrl-D)"""


def main(argv: list[str]) -> int:
    """Runs the command with these arguments."""
    flags = _parse(argv)

    from vlm_jax.inference.generate import Sampling
    from vlm_jax.inference.model import load, read_picture
    from vlm_jax.inference.session import ChatSession

    for image in flags.image:  # before the slow part, so that a mistyped name is told at once
        read_picture(image)
    session = ChatSession(
        load(flags.model), flags.max_new_tokens, Sampling(flags.temperature, flags.top_p, flags.seed), flags.max_tiles
    )
    for image in flags.image:
        session.show(image)
    if flags.prompt is None:
        converse(session)
    else:
        sys.stdout.write(session.ask(flags.prompt) + "\n")
    return cli.OK


def converse(session: Any) -> None:
    """Talks until the user leaves. A mistake is told in one line and the conversation goes on."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(highlight=False, soft_wrap=True)
    console.print(_COMMANDS, markup=False)
    while True:
        try:
            line = console.input("[bold]> [/bold]").strip()
        except EOFError:
            return
        if line == "/quit":
            return
        try:
            said = _obey(session, line)
        except UserError as error:
            said = f"error: {error}"
        if said:
            console.print(escape(said))


def _obey(session: Any, line: str) -> str:
    """Carries out one line of the user's; returns what to print."""
    command, _, argument = line.partition(" ")
    if not line:
        return ""
    if command == "/image" and argument:
        session.show(argument.strip())
        return f"({len(session.pending)} image(s) for the next question)"
    if command == "/reset":
        session.reset()
        return "(forgotten)"
    if command.startswith("/"):
        return _COMMANDS
    return session.ask(line)


def _parse(argv: list[str]) -> Any:
    parser = cli.ArgumentParser(prog="python -m vlm_jax.chat", description=_HELP)
    parser.add_argument("--model", required=True, metavar="DIR", help="training workdir or Hugging Face folder")
    parser.add_argument("--image", action="append", default=[], metavar="FILE", help="an image; may be repeated")
    parser.add_argument("--prompt", metavar="TEXT", help="the question; without it a conversation starts")
    parser.add_argument("--max_new_tokens", type=int, default=256, metavar="N", help="longest answer (default: 256)")
    parser.add_argument(
        "--temperature", type=float, default=0.0, metavar="X", help="0 (default): always the most likely token"
    )
    parser.add_argument(
        "--top_p", type=float, default=1.0, metavar="X", help="with a temperature: share of the probability drawn from"
    )
    parser.add_argument(
        "--seed", type=int, default=0, metavar="N", help="with a temperature: equal seeds give equal answers"
    )
    parser.add_argument(
        "--max_tiles", type=int, metavar="N", help="most tiles an image is cut into (default: as in training)"
    )
    flags = parser.parse_args(argv)
    checks = {
        "max_new_tokens": (flags.max_new_tokens >= 1, "must be at least 1"),
        "temperature": (0 <= flags.temperature < math.inf, "must be a number from 0"),
        "top_p": (0 < flags.top_p <= 1, "must be above 0 and at most 1"),
        "max_tiles": (flags.max_tiles is None or flags.max_tiles >= 1, "must be at least 1"),
    }
    for name, (fine, rule) in checks.items():
        if not fine:
            parser.error(f"--{name} {rule}, got {getattr(flags, name)}")
    return flags


if __name__ == "__main__":
    cli.run(main)
