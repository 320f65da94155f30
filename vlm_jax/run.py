"""The whole road of one run: data, stages, evaluation, report, export. `main` reads the flags and calls this."""

from __future__ import annotations

import datetime
import hashlib
import importlib.metadata
import json
import platform
import resource
import shlex
import shutil
import sys
from pathlib import Path
from typing import Any

import jax

from vlm_jax.ask import on_one_cpu, validation_questions
from vlm_jax.checkpoints import complete
from vlm_jax.cli import progress
from vlm_jax.config import to_plain
from vlm_jax.convert.folders import Opened, token_ids, why_not, write_folder
from vlm_jax.data.text.corpus import training_text
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.errors import UserError
from vlm_jax.evaluation.benchmarks import Benchmark, questions
from vlm_jax.evaluation.report import table, write_report
from vlm_jax.evaluation.runner import EvaluationResult, evaluate
from vlm_jax.files import is_full_disk
from vlm_jax.inference.model import Model
from vlm_jax.models.vlm import PARTS
from vlm_jax.sharding import describe, make_mesh, use_cpu_devices
from vlm_jax.start import open_start
from vlm_jax.training.data import Splits
from vlm_jax.training.interrupt import Interrupt
from vlm_jax.training.log import Clock, say
from vlm_jax.training.loop import Trained, initial_params, open_quarantine, train, with_steps
from vlm_jax.training.recipe import Recipe
from vlm_jax.training.workdir import Workdir

TOKENIZER_RECORDS = 10_000
"""The tokenizer is trained on the text of at most so many records."""


def run(recipe: Recipe, folder: str | Path) -> dict[str, Any]:
    """Runs `recipe` in `folder`, or continues what was begun there, and returns the report.

    Raises:
      UserError: the folder belongs to another config, the disk is full, the data does not fit, ...
      KeyboardInterrupt: SIGINT or SIGTERM; what was done so far is saved.
    """
    workdir = Workdir(folder)
    with workdir.locked(), Interrupt().installed() as interrupt:
        try:
            use_cpu_devices(recipe.runtime.cpu_devices)
            recipe, start = open_start(recipe, workdir)
            return _run(recipe, start, workdir, workdir.open(recipe), interrupt)
        except KeyboardInterrupt:
            say(f"stopped; to continue, run the same command again: {shlex.join(_command())}")
            raise
        except UserError:
            raise
        except Exception as error:
            if not is_full_disk(error):
                raise
            raise UserError(
                f"{workdir.root}: no space left on the disk; free some and run the same command again"
            ) from error


def _run(recipe: Recipe, start: Opened | None, workdir: Workdir, existed: bool, interrupt: Interrupt) -> dict[str, Any]:
    if workdir.report.is_file():  # written last
        say(f"{workdir.root} is finished: open {workdir.root / 'report.html'}")
        return json.loads(workdir.report.read_text())
    clock = Clock()
    mesh = make_mesh(recipe.runtime.mesh)
    device = f"{mesh.size} x {jax.devices()[0].device_kind}"
    say(f"{'continuing' if existed else 'starting'} {recipe.name} in {workdir.root} on {device}, jax {jax.__version__}")
    if mesh.shape["fsdp"] * mesh.shape["tensor"] > 1:
        say("\n".join(describe(jax.eval_shape(lambda: initial_params(recipe)), mesh)))
    splits = recipe.data.open(workdir.root, recipe.seed, say)
    tokenizer = _tokenizer(recipe, workdir, splits, start)
    quarantine = open_quarantine(recipe, workdir, splits)
    recipe = with_steps(recipe, splits, tokenizer, quarantine, fresh=not complete(workdir.checkpoints))
    token_ids(recipe.system, tokenizer)  # the export needs them, and answers the token that ends a turn
    reason = why_not(recipe.system)
    if reason:
        say(f"no export/ will be written, only checkpoints: {reason}")
    benchmark = _benchmark(recipe, splits)
    given = start.params if start else None
    ask = validation_questions(recipe, splits.validation, tokenizer)
    trained = train(recipe, workdir, splits, tokenizer, mesh, clock, interrupt, quarantine, given, ask)
    params = on_one_cpu({part: trained.params[part] for part in PARTS if part in trained.params})
    model = Model(recipe.system, params, tokenizer)
    if not reason:
        write_folder(workdir.export, params, recipe.system, tokenizer, overwrite=True)
    result = _evaluate(recipe, model, benchmark, splits) if benchmark else None
    report = _report(recipe, trained, result, clock.seconds, device)
    _write(recipe, workdir, splits, result, report)
    _summary(report, workdir)
    return report


def _tokenizer(recipe: Recipe, workdir: Workdir, splits: Splits, start: Opened | None) -> Tokenizer:
    # A start is there as long as nothing has been trained: what an attempt before left may be of another folder.
    if workdir.tokenizer.is_dir() and start is None:
        tokenizer = Tokenizer.load(workdir.tokenizer)
    else:
        template = recipe.system.chat_template
        text = training_text(splits.train, template, TOKENIZER_RECORDS)
        tokenizer = start.tokenizer if start else Tokenizer.train(text, recipe.tokenizer_size, template)
        aside = workdir.root / ".tokenizer"
        shutil.rmtree(aside, ignore_errors=True)
        tokenizer.save(aside, template)
        shutil.rmtree(workdir.tokenizer, ignore_errors=True)
        aside.rename(workdir.tokenizer)  # whole, or not there
    rows = recipe.system.model.decoder.vocab_size
    if tokenizer.vocab_size > rows:
        raise UserError(
            f"config.system.model.decoder.vocab_size is {rows}, but the tokenizer has {tokenizer.vocab_size} words"
        )
    return tokenizer


def _benchmark(recipe: Recipe, splits: Splits) -> Benchmark | None:
    """What the model will be asked, if the data has such a split; made before it is trained, so that mistakes show."""
    split = getattr(splits, recipe.evaluation.split)
    if split is None:
        return None
    benchmark = questions(split)
    return benchmark.limited(recipe.evaluation.limit) if recipe.evaluation.limit else benchmark


def _evaluate(recipe: Recipe, model: Model, benchmark: Benchmark, splits: Splits) -> EvaluationResult:
    settings = recipe.evaluation
    with progress("answering", (1 + len(settings.controls)) * len(benchmark.questions)) as advance:
        return evaluate(
            lambda conversations: model.answer(conversations, settings.max_new_tokens, settings.batch_size),
            benchmark,
            reference=splits.validation,
            controls=settings.controls,
            grid=recipe.system.grid,
            chunk_size=10 * settings.batch_size,
            progress=advance,
            seed=recipe.seed,
        )


def _report(
    recipe: Recipe, trained: Trained, result: EvaluationResult | None, wall_seconds: float, device: str
) -> dict[str, Any]:
    config = json.dumps(to_plain(recipe), sort_keys=True)
    packages = ("jax", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "pillow")
    return {
        "wall_seconds": wall_seconds,
        "stages": trained.figures,
        "tasks": result.report() if result else {},
        "peak_memory_bytes": _peak_memory(recipe),
        "versions": {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in packages}},
        "device": device,
        "config_digest": hashlib.sha256(config.encode()).hexdigest(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def _peak_memory(recipe: Recipe) -> int:
    """Bytes: this process at its largest, and its workers, each as large as the largest process it started."""
    own, child = (resource.getrusage(who).ru_maxrss * 1024 for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return own + child * max(1, recipe.runtime.workers)


def _write(
    recipe: Recipe, workdir: Workdir, splits: Splits, result: EvaluationResult | None, report: dict[str, Any]
) -> None:
    split = getattr(splits, recipe.evaluation.split) or ()
    rows = result.rows if result else ()
    asked = {row["id"] for row in rows}
    images = {c.id: c.images for c in (split[i] for i in range(len(split))) if c.id in asked}
    write_report(
        workdir.root,
        report,
        rows,
        images,
        tiler=recipe.system.tiles,
        title=recipe.name,
        gallery_size=recipe.evaluation.gallery,
        seed=recipe.seed,
    )


def _summary(report: dict[str, Any], workdir: Workdir) -> None:
    for line in table(report["tasks"]):
        say(line)
    say(
        f"done in {report['wall_seconds'] / 60:.1f} minutes, {report['peak_memory_bytes'] / 2**30:.1f} GiB at most; "
        f"open {workdir.root / 'report.html'}, or talk to it: python -m vlm_jax.chat --model={workdir.root}"
    )


def _command() -> list[str]:
    return ["python", "-m", "vlm_jax.main", *sys.argv[1:]]
