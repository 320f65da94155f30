"""Makes a folder to commit of a finished run: the exported model, its report, and a README that says what they are.

    python examples/publish.py --run=runs/full --target=examples/pocket --commit=HASH

The folder is an HF folder like the run's `export/`, so that every command and `transformers` take it as a model. The
figures of its README are those of its `report.json`.
"""

from __future__ import annotations

import runpy
import shutil
from pathlib import Path
from typing import Any

from vlm_jax import cli
from vlm_jax.config import build, to_plain
from vlm_jax.errors import UserError
from vlm_jax.evaluation.report import METRIC_LABELS
from vlm_jax.files import new_folder, read_json
from vlm_jax.training.recipe import Recipe
from vlm_jax.training.workdir import config_differences

ROOT = Path(__file__).resolve().parents[1]

MOST_BYTES = 20 * 2**20
"""A model that lies beside the code must stay small."""

RECIPE = "recipe.json"
"""The run's config; only a folder that has one is replaced."""


def main(arguments: list[str]) -> None:
    """Copies what a finished run left and describes it."""
    parser = cli.ArgumentParser(prog="python examples/publish.py", description=__doc__)
    parser.add_argument("--run", type=Path, required=True, help="workdir of a finished run")
    parser.add_argument(
        "--target", type=Path, required=True, help="new folder, or one made by this command, which is replaced"
    )
    parser.add_argument("--commit", required=True, help="of the code that the run was started from")
    flags = parser.parse_args(arguments)
    publish(flags.run, flags.target, flags.commit)


def publish(run: Path, target: Path, commit: str) -> None:
    """Puts what a finished run left in the place of `target`, or leaves it as it is.

    Raises:
      UserError: the run is not finished, exported nothing or had another recipe than its name says; `target` holds
        something else, or would be too large.
    """
    for name in ("report.json", "export"):
        if not (run / name).exists():
            raise UserError(f"{run}: has no {name}; only a finished run of an exported model can be published")
    with new_folder(target, overwrite=(target / RECIPE).is_file()) as folder:
        shutil.copytree(run / "export", folder, dirs_exist_ok=True)
        for name in ("report.html", "report.json"):
            shutil.copy(run / name, folder / name)
        shutil.copy(run / "config.json", folder / RECIPE)
        report, recipe = read_json(folder / "report.json"), read_json(folder / RECIPE)
        ran = to_plain(build(Recipe, recipe))  # a field that came later has its default, which is what was before
        if differences := config_differences(ran, _recipe(recipe["name"])):
            raise UserError(f"{run}: not what {config_of(recipe['name'])} makes today: {'; '.join(differences)}")
        (folder / "README.md").write_text(describe(report, recipe["name"], commit), encoding="utf-8")
        size = sum(path.stat().st_size for path in folder.iterdir())
        if size > MOST_BYTES:
            raise UserError(f"{run}: {size:,} bytes, more than {MOST_BYTES:,}; too large to be committed")


def config_of(name: str) -> str:
    """What `--config` was given for the recipe of this name."""
    file, _, argument = name.partition(":")
    return f"configs/{file}.py" + (f":{argument}" if argument else "")


def _recipe(name: str) -> Any:
    """All fields of the recipe of this name, as a run's `config.json` has them."""
    file, _, argument = name.partition(":")
    make = runpy.run_path(str(ROOT / f"configs/{file}.py"))["get_config"]
    return to_plain(build(Recipe, make(argument)))


def describe(report: dict[str, Any], name: str, commit: str) -> str:
    """The README of a run's folder: where the model is from, what it scores and how to ask it."""
    config, folder = config_of(name), name.rpartition(":")[2]
    versions = ", ".join(f"{package} {version}" for package, version in report["versions"].items())
    return f"""# A trained pocket model

What `{config}` makes, so that chat, tests and notebooks have a model at hand that sees. Nothing in this
folder was written by hand: `examples/publish.py` copied it from a finished run.

| | |
|---|---|
| command | `python -m vlm_jax.main --config={config} --workdir=runs/{folder}` |
| commit | `{commit}` |
| device | {report["device"]} |
| finished | {report["date"]} |
| took | {report["wall_seconds"] / 60:.0f} minutes, {report["peak_memory_bytes"] / 2**30:.1f} GiB at most |
| versions | {versions} |

{score_table(report)}
Held-out questions of [the pocket data](../../docs/pocket_data.md), with 95 % intervals. The best constant answer is
what can be had without looking; the other columns are this model beside a grey picture, its own picture with the pixels
shuffled, and another question's picture. (Shuffled photographs keep their colours, by which many can be told.)
[report.html](report.html) shows curves, kinds of questions, and pictures with what was said.

```
python -m vlm_jax.chat --model=examples/pocket --image=receipt.png --prompt="What is the total?"
python -m vlm_jax.evaluate --model=examples/pocket --benchmark=pocket --data=DATA --out=scores.json
```

The weights are under the licence of this repository; what they were trained on is listed, with its terms, in the data
card. They know ten digits, six shapes, 15 photographs, 64 words, small receipts, forms and bar charts, and no more.
"""


def score_table(report: dict[str, Any]) -> str:
    """Scores by task, with the baselines and controls that there are, and their means over the tasks."""
    tasks = report["tasks"]
    others = list(dict.fromkeys(other for task in tasks.values() for other in _others(task)))
    lines = ["| task | metric | score | interval | " + " | ".join(others) + " |", "|---" * (4 + len(others)) + "|"]
    for name, task in tasks.items():
        low, high = task["interval"]
        cells = [f"`{name}`", METRIC_LABELS[task["metric"]], _percent(task["value"])]
        cells += [f"{100 * low:.1f} – {100 * high:.1f}", *(_percent(_others(task).get(other)) for other in others)]
        lines.append("| " + " | ".join(cells) + " |")

    def mean(values: list[float | None]) -> str:
        return _percent(None if None in values else sum(values) / len(values))

    means = [mean([_others(task).get(other) for task in tasks.values()]) for other in others]
    lines.append(f"| mean | | {mean([task['value'] for task in tasks.values()])} | | " + " | ".join(means) + " |")
    return "\n".join(lines) + "\n"


def _others(task: dict[str, Any]) -> dict[str, float | None]:
    baselines = {"constant answer": task["baselines"]["majority"], "blank": task["baselines"]["blank"]}
    return baselines | task.get("controls", {})


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.1f} %"


if __name__ == "__main__":
    cli.run(main)
