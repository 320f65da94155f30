"""The report of a run: `report.json` for programs, and `report.html` for people, one file that opens offline."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vlm_jax.cli import duration
from vlm_jax.data.page import COLOURS, render_page
from vlm_jax.errors import UserError
from vlm_jax.evaluation import breakdowns, charts, gallery
from vlm_jax.evaluation.runner import bootstrap_interval
from vlm_jax.evaluation.timeline import timeline
from vlm_jax.files import write_atomically

REPORT_KEYS = (
    "wall_seconds",
    "stages",
    "tasks",
    "peak_memory_bytes",
    "versions",
    "device",
    "config_digest",
    "date",
)
"""The keys of `report.json`, all required.

`wall_seconds`: the whole run, in seconds. `stages`: name -> figures (`steps`, `seconds`, `first_loss`, `last_loss`,
`answers_per_second` and others, all numbers), in order. `tasks`: see `EvaluationResult.report`.
`peak_memory_bytes`: of the process and its workers, their peaks added. `versions`: package -> version. `device`:
in words. `config_digest`: of the whole config. `date`: ISO 8601."""

METRIC_LABELS = {
    "exact_match": "exact match",
    "anls": "ANLS",
    "relaxed_accuracy": "relaxed accuracy, 5 %",
    "box_iou_accuracy": "box with IoU ≥ 0.5",
}

STAGE_LABELS = {
    "answers_per_second": "answers / s",
    "tokens_per_second": "tokens / s",
    "tiles_per_second": "tiles / s",
    "validation_seconds": "asking",
}

CONTROL_LABELS = {
    "majority": "the best constant answer",
    "blank": "the same model, shown grey pictures",
    "shuffled": "the same pictures, their pixels in random order",
    "wrong": "pictures of other questions",
}


def write_report(
    workdir: str | os.PathLike[str],
    report: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    images: Mapping[str, Sequence[bytes]],
    *,
    tiler: gallery.Tiler | None = None,
    title: str = "",
    gallery_size: int = 24,
    seed: int = 0,
) -> None:
    """Writes `report.json` and `report.html` into `workdir`, each whole or not at all.

    Args:
      workdir: an existing folder; curves come from its `metrics.jsonl` (JSON lines with `stage`, `step`, `loss`,
        `learning_rate`), where there is one.
      report: has the keys `REPORT_KEYS`.
      rows: rows of an `EvaluationResult`.
      images: id of a row -> the encoded pictures of its question; only those of the gallery are looked at.
      tiler: cuts a picture as the model's data pipeline does, to show the tiles.
      title: heading of the page; the name of the folder if empty.
      gallery_size: number of questions shown.
      seed: of the choice of questions.

    Raises:
      UserError: if a file cannot be written (a full disk, a folder without permission).
      ValueError: if the report lacks a key or has an unknown one.
    """
    workdir = Path(workdir)
    if set(report) != set(REPORT_KEYS):
        raise ValueError(f"report.json has wrong keys: {sorted(set(report) ^ set(REPORT_KEYS))}")
    metrics = charts.read_metrics(workdir / "metrics.jsonl")
    shown = [gallery.card(row, images[row["id"]], tiler) for row in gallery.choose(rows, gallery_size, seed)]
    page = render(report, rows, metrics, shown, title=title or workdir.resolve().name, seed=seed)
    text = json.dumps(report, indent=2, ensure_ascii=False, allow_nan=False)
    # The page first: a run that has a report.json is finished.
    for file, content in (("report.html", page), ("report.json", text + "\n")):
        try:
            write_atomically(workdir / file, content)
        except OSError as error:
            raise UserError(f"{workdir / file}: cannot be written: {error.strerror or error}") from None


def render(
    report: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    metrics: charts.Metrics,
    cards: Sequence[Mapping[str, Any]],
    *,
    title: str,
    seed: int,
) -> str:
    """Returns the page. Everything that is not markup of the template is escaped: predictions are untrusted text."""
    tasks = report["tasks"]
    order = [*tasks, *dict.fromkeys(row["task"] for row in rows if row["task"] not in tasks)]
    place = {task: i for i, task in enumerate(order)}.__getitem__
    rows = sorted(rows, key=lambda row: place(row["task"]))
    scores = [_task(name, score, [row for row in rows if row["task"] == name]) for name, score in tasks.items()]
    values = dict(
        report=report,
        title=title,
        seed=seed,
        cards=cards,
        tasks=scores,
        controls=[(name, label) for name, label in CONTROL_LABELS.items() if any(name in t["beside"] for t in scores)],
        mean=_means(scores),
        kinds=[task for task in scores if task["kinds"]],
        tables=[
            (heading, found)
            for heading, found in (
                ("by number of tiles", breakdowns.by_tiles(rows)),
                ("by longer side of the picture", breakdowns.by_size(rows)),
            )
            if found is not None
        ],
        questions=sum(score["n"] for score in scores),
        right=sum(row["score"] >= 1 for row in rows),
        stages=[_stage(i, name, report["stages"][name], metrics) for i, name in enumerate(report["stages"])],
        timeline=timeline(report, metrics.stages),
        trained=sum(figures.get("seconds", 0) for figures in report["stages"].values()),
        unreadable=metrics.unreadable,
        task_names=sorted({shown["task"] for shown in cards}, key=place),
    )
    values["figure_names"] = list(dict.fromkeys(name for stage in values["stages"] for name in stage["figures"]))
    template = Path(__file__).parent / "report.html"
    return render_page(template, values, {"number": charts.number, "duration": duration})


def table(tasks: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The scores in lines for a terminal: a task a line, with its baselines and the controls that were asked for."""
    columns = {name: 0 for task in tasks.values() for name in references(task)}
    lines = [f"{'task':<10} {'metric':<18} {'score':>6}" + "".join(f"  {name:>8}" for name in columns)] if tasks else []
    for name, task in tasks.items():
        line = f"{name:<10} {task['metric']:<18} {task['value']:>6.1%}"
        given = references(task)
        lines.append(line + "".join(f"  {given[c]:>8.1%}" if c in given else f"  {'-':>8}" for c in columns))
    return lines


def references(task: Mapping[str, Any]) -> dict[str, float]:
    """What a task's score stands beside, by name: the baselines, then the controls; without what was not measured."""
    both = {**task["baselines"], **task.get("controls", {})}
    return {name: value for name, value in both.items() if value is not None}


def _task(name: str, score: Mapping[str, Any], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """A task as the page shows it. `above`: the controls under which the model does better than guessing can explain,
    be it one answer for all questions or one for every kind of question."""
    beside = references(score)
    best = max((value for key, value in beside.items() if key in score["baselines"]), default=0.0)
    kinds = breakdowns.by_kind(rows, score["metric"])
    guess = sum(kind["n"] * kind["constant"] for kind in kinds) / max(len(rows), 1)
    above = []
    for control in beside.keys() - {"majority"}:
        scores = [row[f"{control}_score"] for row in rows if row.get(f"{control}_score") is not None]
        if scores and bootstrap_interval(scores)[0] > max(score["baselines"]["majority"], guess):
            above.append(control)
    return {
        **score,
        "name": name,
        "metric_label": METRIC_LABELS.get(score["metric"], score["metric"]),
        "beside": beside,
        "above": above,
        "margin": score["value"] - best,
        "stands_out": score["interval"][0] > best,
        "kinds": kinds,
        "mistakes": breakdowns.mistakes(rows),
    }


def _means(scores: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """The mean over tasks of the scores, as `value`, and of what they stand beside, by name."""
    found = {"value": [task["value"] for task in scores]}
    for task in scores:
        for name, value in task["beside"].items():
            found.setdefault(name, []).append(value)
    return {name: sum(values) / len(scores) for name, values in found.items() if scores and len(values) == len(scores)}


def _stage(number: int, name: str, figures: Mapping[str, Any], metrics: charts.Metrics) -> dict[str, Any]:
    """A stage as the page shows it; `figures` by label, without those of the loss, which are one of its own."""
    entries = metrics.stages.get(name, [])
    keys = {"loss": "loss", "learning rate": "learning_rate", "validation score": "validation_mean"}
    drawn = [charts.curve(label, entries, key) for label, key in keys.items()]
    found = {"steps": _figure("steps", figures["steps"])} if "steps" in figures else {}
    if "seconds" in figures:
        found["time"] = duration(figures["seconds"])
    if {"first_loss", "last_loss"} <= set(figures):
        found["loss"] = " → ".join(charts.number(figures[key]) for key in ("first_loss", "last_loss"))
    said = [entry["validation_mean"] for entry in entries if charts.is_number(entry.get("validation_mean"))]
    if said:
        found["validation"] = f"{100 * said[-1]:.1f} %"
    for key, value in figures.items():
        if key not in ("steps", "seconds", "first_loss", "last_loss"):
            found[STAGE_LABELS.get(key, key.replace("_", " "))] = _figure(key, value)
    return {
        "name": name,
        "colour": number % COLOURS,
        "figures": found,
        "curves": [curve for curve in drawn if curve is not None],
    }


def _figure(key: str, value: Any) -> str:
    """A figure of a stage in words: seconds as a duration, others to three digits, large ones in thousands."""
    if not charts.is_number(value):
        return str(value)
    if key.endswith("seconds"):
        return duration(value)
    for least, unit, name in ((1e9, 1e9, "G"), (1e6, 1e6, "M"), (1e4, 1e3, "k")):
        if abs(value) >= least:
            return f"{charts.number(value / unit)} {name}"
    return f"{value:,}" if isinstance(value, int) else charts.number(value)
