"""`write`: conversations that a large model writes."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from vlm_jax import cli
from vlm_jax.data.conversation import RecordError
from vlm_jax.data.formats.annotations import open_lines
from vlm_jax.data.formats.root import Root
from vlm_jax.data.recipes.commands import flags as shared
from vlm_jax.data.recipes.endpoint import Endpoint
from vlm_jax.data.recipes.ledger import Ledger
from vlm_jax.data.recipes.pace import Pace
from vlm_jax.data.recipes.pictures import data_url
from vlm_jax.data.recipes.styles import load_style, names_of_styles
from vlm_jax.data.recipes.writer import Job, ask_all, records, tokens
from vlm_jax.data.recipes.written import Part, check_out, write_parts
from vlm_jax.errors import UserError

HELP = """\
Has a large model write conversations about pictures, at any server with OpenAI's /chat/completions: OpenAI's own, vLLM,
llama.cpp, Ollama, ... What the model is told of a picture is a context, one a line:

  {"id": "42", "image": "a.jpg", "captions": ["A dog on a sofa."],
   "boxes": [{"label": "dog", "box": [0.1, 0.2, 0.5, 0.9]}]}

with boxes as shares of width and height; `ocr` (transcripts) and `facts` (sentences) are read too. The recipes `coco`
and `ocr --save-words` write contexts. A style says what is asked: a name of those below, or a TOML file of your own.

Every reply is kept in OUT.replies.jsonl (the name of --out, with that ending) as it came. A run that was interrupted is
continued by the same command and asks nothing twice. Replies that cannot be used are listed in --quarantine.

The address is --base-url or OPENAI_BASE_URL, the key OPENAI_API_KEY or the content of --key-file; it is never printed.

styles:
"""
_EXAMPLES = """
examples:
  python -m vlm_jax.data.recipes write --style=conversation --contexts=contexts.jsonl --root=train2017 \\
      --base-url=http://localhost:8000/v1 --model=Qwen2.5-72B-Instruct --out=conversation.json
  python -m vlm_jax.data.recipes write --style=caption_filter --contexts=web.jsonl --per-minute=60 --model=... \\
      --out=web.json
"""


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Adds this recipe's flags."""
    from vlm_jax.data.inspection.flags import natural, positive, share

    styles = "".join(f"  {name:<18} {load_style(name).about}\n" for name in names_of_styles())
    parser.description = HELP + styles + _EXAMPLES
    parser.add_argument("--style", required=True, metavar="NAME|FILE", help="what is written: see above")
    parser.add_argument("--contexts", required=True, type=Path, metavar="FILE", help="what is known of the pictures")
    parser.add_argument("--root", type=Path, metavar="DIR", help="the pictures' folder (default: that of --contexts)")
    parser.add_argument("--base-url", default=os.environ.get("OPENAI_BASE_URL"), metavar="URL", help="of the server")
    parser.add_argument("--model", required=True, help="its name at the server")
    parser.add_argument("--key-file", type=Path, metavar="FILE", help="holds the key (default: OPENAI_API_KEY)")
    parser.add_argument(
        "--body", type=_object, default={}, metavar="JSON", help="more fields of every request; null removes one"
    )
    parser.add_argument("--concurrency", type=positive, default=4, metavar="N", help="requests at once (default: 4)")
    parser.add_argument("--per-minute", type=natural, default=0, metavar="N", help="requests (default: no limit)")
    parser.add_argument("--timeout", type=positive, default=120, metavar="S", help="seconds of silence (default: 120)")
    parser.add_argument("--attempts", type=positive, default=6, metavar="N", help="for one request (default: 6)")
    parser.add_argument(
        "--first-wait", type=float, default=1.0, metavar="S", help="seconds after the first one in vain (default: 1)"
    )
    parser.add_argument(
        "--image-side", type=natural, default=1024, metavar="PX", help="of pictures sent; 0 is any (default: 1024)"
    )
    parser.add_argument("--ask-bad-again", action="store_true", help="ask anew where a reply could not be used")
    parser.add_argument("--price-in", type=float, default=0.0, metavar="X", help="of a million tokens asked")
    parser.add_argument("--price-out", type=float, default=0.0, metavar="X", help="of a million tokens answered")
    parser.add_argument(
        "--quarantine",
        type=Path,
        default=Path("quarantine.jsonl"),
        metavar="FILE",
        help="where contexts and replies that cannot be used are listed (default: %(default)s)",
    )
    parser.add_argument(
        "--max-bad", type=share, default=0.2, metavar="SHARE", help="of all contexts that may be bad (default: 0.2)"
    )
    shared.add_seed(parser, "which question a description answers")
    shared.add_out(parser)


def run(flags: Any) -> int:
    """Writes the conversations.

    Raises:
      UserError: input that cannot be read, a server that does not answer, too much that cannot be used, or an output
        that cannot be written.
    """
    from vlm_jax.data.inspection.flags import folder_for
    from vlm_jax.data.quarantine import Quarantine, remove

    # The ledger says whether this run wrote what is there.
    kept = flags.out.with_name(f"{flags.out.name}.replies.jsonl")
    check_out(flags.out, flags.overwrite or kept.exists())
    folder_for(flags.quarantine, "--quarantine")
    if not flags.base_url:
        raise UserError("--base-url: give the server's address, or set OPENAI_BASE_URL")
    server = Endpoint(flags.base_url, flags.model, _key(flags.key_file), float(flags.timeout))
    job = _job(flags)
    pace = Pace(flags.per_minute, attempts=flags.attempts, first_wait=flags.first_wait)
    remove(flags.quarantine)
    with Ledger(kept) as ledger:
        before = len(ledger)
        if flags.ask_bad_again:
            _forget_bad(job, ledger)
        with cli.progress(f"Asking {flags.model}", len(job.lines)) as advance:
            done = _counter(len(job.lines), flags, advance)
            given_up = ask_all(job, server.chat, ledger, pace, flags.concurrency, done)
        ledger.finish()
        lost = f"{len(given_up):,} of {len(job.lines):,} contexts got no reply; the same command asks them again"
        if given_up and not len(ledger):
            raise UserError(f"{lost}. The last: {given_up[-1]}")
        quarantine = Quarantine(flags.quarantine, len(job.lines), flags.max_bad, setting="--max-bad")
        part = Part(Path(flags.style).stem, _checked(job, ledger, quarantine), _root(flags))
        counts = write_parts([part], flags.out, overwrite=True)
        used = tokens(ledger)
        sys.stdout.write(
            f"{sum(counts.values()):,} records of {len(job.lines):,} contexts; {len(ledger):,} replies, "
            f"{max(len(ledger) - before, 0):,} of them new; put off {pace.waits:,} times\n{quarantine.summary()}\n"
        )
    cost = (used["prompt_tokens"] * flags.price_in + used["completion_tokens"] * flags.price_out) / 1e6
    priced = f", {cost:,.2f} at the given prices" if cost else ""
    sys.stdout.write(
        f"tokens: {used['prompt_tokens']:,} asked, {used['completion_tokens']:,} answered{priced}\n"
        f"{kept}: every reply as it came\n{flags.out}: written\n"
    )
    if given_up:
        raise UserError(f"{lost}. The last: {given_up[-1]}")
    return cli.OK


def _root(flags: Any) -> Path:
    """The pictures' folder."""
    return flags.root or flags.contexts.parent


def _job(flags: Any) -> Job:
    root = Root(_root(flags))

    def image(name: str, place: str) -> str:
        return data_url(root.read(name, place, "image"), place, flags.image_side)

    return Job(
        lines=open_lines(flags.contexts),
        name=str(flags.contexts),
        style=load_style(flags.style),
        model=flags.model,
        image=image,
        body=flags.body,
        seed=flags.seed,
    )


def _counter(total: int, flags: Any, advance: Callable[..., None]) -> Callable[[str], None]:
    """Counts what is done; ends a run whose replies mostly cannot be used, before it has cost more."""
    bad = 0

    def done(problem: str) -> None:
        nonlocal bad
        advance()
        bad += bool(problem)
        if bad > flags.max_bad * total:
            raise UserError(
                f"{bad:,} of {total:,} contexts or their replies cannot be used, but only {100 * flags.max_bad:g} % "
                f"may (--max-bad). The last: {problem}. All replies are kept"
            )

    return done


def _checked(job: Job, ledger: Ledger, quarantine: Any) -> Iterable[dict[str, Any]]:
    """The records, with those that no run could read in the quarantine."""
    found: list[RecordError] = []
    yield from records(job, ledger, found.append)
    quarantine.write(found)


def _forget_bad(job: Job, ledger: Ledger) -> None:
    """Removes the entries of contexts whose replies cannot be used."""
    places: list[RecordError] = []
    for _ in records(job, ledger, places.append):
        pass
    bad = {error.place for error in places if error.reason == "reply"}
    forgotten = set()
    for number in range(len(job.lines)):
        if f"{job.name}:{number + 1}" in bad:
            forgotten.add(job.context(number)[0].id)
    kept = [key for key in ledger.keys() if key.rpartition(" ")[0] not in forgotten]  # noqa: SIM118
    ledger.finish(kept)


def _key(path: Path | None) -> str:
    if path is None:
        return os.environ.get("OPENAI_API_KEY", "").strip()
    try:
        return path.read_text("utf-8").strip()
    except OSError as error:
        raise UserError(f"--key-file: {path}: cannot be read: {error.strerror}") from None
    except ValueError:
        raise UserError(f"--key-file: {path}: not text") from None


def _object(text: str) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise argparse.ArgumentTypeError(f"must be a JSON object, got '{text}'")
    return value
