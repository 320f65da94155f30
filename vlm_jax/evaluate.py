"""Scores a model: `python -m vlm_jax.evaluate --model=DIR --benchmark=NAME --data=PATH --out=FILE.json`."""

from __future__ import annotations

import datetime
import functools
import importlib.metadata
import inspect
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm_jax import cli
from vlm_jax.errors import UserError

CHUNK_BATCHES = 8
"""Batches between two signs of progress; the model may sort the questions among them by length."""

DESCRIPTION = """\
Asks a trained model every question of a benchmark and scores the answers.

Each score comes with a 95 % interval and two baselines that a model which
looks at its pictures must beat: the best constant answer (what guessing
gives), and the same model shown grey pictures of the same size. More controls
ask whether it looks (see the list below): under each its scores must fall.
"""

EPILOG = """\
example:
  python -m vlm_jax.evaluate --model=runs/pocket --benchmark=pocket \\
      --data=runs/pocket/data/pocket/default_0/1.4.0 --out=scores.json --limit=50

FILE.json holds the settings, the score of every task, and one row per question
with the prediction. The exit code is 0 only if all questions were asked.

benchmarks:
"""


def main(arguments: Sequence[str]) -> None:
    """Runs the command with its arguments (without the program's name).

    Raises:
      UserError: for a flag, model folder, benchmark or data that cannot be used.
    """
    from vlm_jax.evaluation.report import table

    args = _parser().parse_args(arguments)
    _check(args)
    result, settings = _evaluate(args)
    _write(args, result, settings)
    sys.stdout.write("".join(f"{line}\n" for line in table(result.report())))


def _parser() -> cli.ArgumentParser:
    from vlm_jax.evaluation.benchmarks import BENCHMARKS
    from vlm_jax.evaluation.controls import CONTROLS

    known = "".join(f"  {name:<10} {inspect.getdoc(read).splitlines()[0]}\n" for name, read in BENCHMARKS.items())
    known += "\ncontrols:\n"
    known += "".join(f"  {name:<10} {inspect.getdoc(make).splitlines()[0]}\n" for name, make in CONTROLS.items())
    parser = cli.ArgumentParser(prog="python -m vlm_jax.evaluate", description=DESCRIPTION, epilog=EPILOG + known)
    add = parser.add_argument
    add("--model", required=True, metavar="DIR", help="training workdir, or HF folder of a converted model")
    add("--benchmark", required=True, metavar="NAME", help="which benchmark (see the list below)")
    add("--data", required=True, metavar="PATH", help="the questions: a data set of any kind (docs/data.md)")
    add("--out", required=True, metavar="FILE.json", help="where to write the scores and the predictions")
    add("--split", default="test", help="which, of a folder with several (default: %(default)s)")
    add(
        "--reference_split",
        default="validation",
        metavar="SPLIT",
        help="split that the constant answers of the majority baseline are taken from (default: %(default)s)",
    )
    add("--limit", type=int, metavar="N", help="ask only the first N questions of each task")
    add(
        "--controls",
        type=_names,
        default=("blank",),
        metavar="NAME,...",
        help="ask everything again under these (see the list below), each as long as the first time (default: blank)",
    )
    add("--no_blank", action="store_true", help="leave the grey pictures out: half the time, one baseline less")
    add("--batch_size", type=int, default=16, metavar="N", help="questions answered at once (default: %(default)s)")
    add("--max_new_tokens", type=int, default=64, metavar="N", help="longest answer, in tokens (default: %(default)s)")
    return parser


def _names(text: str) -> tuple[str, ...]:
    return tuple(name.strip() for name in text.split(",") if name.strip())


def _check(args: Any) -> None:
    """Finds what can be known to be wrong before anything heavy is loaded."""
    from vlm_jax.evaluation import benchmarks, controls

    benchmarks.reader(args.benchmark)
    controls.check_names(args.controls, "--controls")
    if args.no_blank:
        args.controls = tuple(name for name in args.controls if name != "blank")
    for flag in ("limit", "batch_size", "max_new_tokens"):
        value = getattr(args, flag)
        if value is not None and value < 1:
            raise UserError(f"--{flag}: must be at least 1, got {value}")
    if not Path(args.model).is_dir():
        raise UserError(f"--model: {args.model}: no such folder")
    if not Path(args.data).exists():
        raise UserError(f"--data: {args.data}: no such file or folder")
    if not Path(args.out).absolute().parent.is_dir():
        raise UserError(f"--out: {args.out}: its folder does not exist")


def _evaluate(args: Any) -> tuple[Any, dict[str, Any]]:
    import vlm_jax
    from vlm_jax.data.formats.open import open_data
    from vlm_jax.evaluation import benchmarks, runner

    benchmark = benchmarks.reader(args.benchmark)(open_data(args.data, split=args.split))
    if args.limit is not None:
        benchmark = benchmark.limited(args.limit)
    reference = open_data(args.data, split=args.reference_split) if Path(args.data).is_dir() else None
    model = vlm_jax.load(args.model)
    total = len(benchmark.questions) * (1 + len(args.controls))
    with cli.progress(f"asking {benchmark.name}", total) as advance:
        result = runner.evaluate(
            functools.partial(model.answer, max_new_tokens=args.max_new_tokens, batch_size=args.batch_size),
            benchmark,
            reference=reference,
            controls=args.controls,
            grid=model.system.grid,
            chunk_size=CHUNK_BATCHES * args.batch_size,
            progress=advance,
        )
    return result, {"left_out": benchmark.left_out}


def _write(args: Any, result: Any, settings: dict[str, Any]) -> None:
    import vlm_jax
    from vlm_jax.files import write_atomically

    text = {
        "benchmark": result.benchmark,
        **{key: value for key, value in vars(args).items() if key not in ("benchmark", "out")},
        **settings,
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "versions": {"vlm_jax": vlm_jax.__version__, **{p: importlib.metadata.version(p) for p in ("jax", "numpy")}},
        "tasks": result.report(),
        "majority_answers": {name: score.majority_answer for name, score in result.tasks.items()},
        "rows": result.rows,
    }
    try:
        write_atomically(Path(args.out), json.dumps(text, indent=1, ensure_ascii=False) + "\n")
    except OSError as error:
        raise UserError(f"--out: {args.out}: cannot be written: {error.strerror or error}") from None


if __name__ == "__main__":
    cli.run(main)
