"""Computes the tables of `docs/pocket_data.md`: `python docs/pocket_tables.py --write` (half a minute).

Nothing in them is typed by hand: sizes come from the presets, the rest from the material and from the test pictures,
which are drawn anew. `tests/data/pocket/test_pocket_document.py` fails when the document and the code part ways.
"""

import collections
import functools
import re
import sys
from pathlib import Path

import numpy as np

from vlm_jax.data.conversation import IMAGE
from vlm_jax.data.pocket import material as material_module
from vlm_jax.data.pocket.jobs import Drawer, make_jobs
from vlm_jax.data.pocket.material import load_material
from vlm_jax.data.pocket.presets import PRESETS
from vlm_jax.data.pocket.scene import CURRICULUM, SPLITS, TASKS, split_of
from vlm_jax.data.pocket.sheets import picture_and_grid
from vlm_jax.evaluation.benchmarks import TASK_METRICS
from vlm_jax.evaluation.metrics import METRICS

DOCUMENT = Path(__file__).parent / "pocket_data.md"
SEEDS = range(5)
REQUEST = "Please provide the bounding box coordinate of the region this sentence describes: "


def source_table() -> str:
    """The table of sources that the module of the material has in its docstring."""
    return "\n".join(line for line in material_module.__doc__.splitlines() if line.startswith("|"))


def division_table() -> str:
    """What of the raw material each split may use."""
    material = load_material(0)
    rows = [
        ("digit images", [len(material[split].indices) for split in SPLITS]),
        ("regions of photographs", [sum(map(len, material[split].regions.values())) for split in SPLITS]),
        ("regions of each photograph", [len(material[split].regions["cat"]) for split in SPLITS]),
        ("words, the same ones", [len(material[split].words) for split in SPLITS]),
    ]
    falls = collections.Counter(split_of(chart) for chart in _three_bars())
    rows.append((f"the {falls.total()} charts A, B, C of three values", [falls[split] for split in SPLITS]))
    return _table(["material", *SPLITS], [[name, *(f"{n:,}" for n in counts)] for name, counts in rows])


def _three_bars() -> list[str]:
    values = range(1, 10)
    return [f"chart: A {a}, B {b}, C {c}" for a in values for b in values for c in values if len({a, b, c}) == 3]


def size_table() -> str:
    """Records by task, preset and split."""
    rows = []
    for task in (*TASKS, *CURRICULUM):
        row = [f"`{task}`"]
        for preset in PRESETS.values():
            row += [f"{preset.records[split].get(task, 0):,}" for split in SPLITS]
        rows.append(row)
    totals = [sum(preset.records[split].values()) for preset in PRESETS.values() for split in SPLITS]
    rows.append(["together", *(f"{total:,}" for total in totals)])
    return _table(["task", *(f"{preset}: {split}" for preset in PRESETS for split in SPLITS)], rows)


def kind_table() -> str:
    """Kinds of question in the test split, and what the best constant answer gets."""
    rows = []
    for task in TASKS:
        records = test_records()[task]
        for kind in dict.fromkeys(record.kind for record in records):
            own = [record for record in records if record.kind == kind]
            question = own[0].conversation.turns[0].text.removeprefix(f"{IMAGE}\n")
            rows.append([f"`{task}`", kind, len(own), _short(question), _short(_gold(own[0])), *_constant(task, own)])
        rows.append([f"`{task}`", "all", len(records), "", "", *_constant(task, records)])
    return _table(["task", "kind", "n", "first question", "gold answer", "best constant", "scores"], rows)


def picture_table() -> str:
    """Sizes of the test pictures, and into how many tiles the pocket model cuts them."""
    rows = []
    for task in TASKS:
        seen = [picture_and_grid(record) for record in test_records()[task]]
        sides = np.asarray([image.size for image, _ in seen])
        tiles = collections.Counter(grid[0] * grid[1] for _, grid in seen)
        pixels = [f"{low}–{high}" for low, high in zip(sides.min(0), sides.max(0), strict=True)]
        shares = [f"{tiles[n] / len(seen):.0%}".replace("%", " %") for n in (1, 2, 3, 4, 6)]
        rows.append([f"`{task}`", f"`{TASK_METRICS[task]}`", *pixels, *shares])
    return _table(["task", "metric", "width", "height", "1 tile", *(f"{n} tiles" for n in (2, 3, 4, 6))], rows)


def digit_table() -> str:
    """How well the nearest training image (of 8×8 pixels) tells a test digit, for some seeds of the data set."""
    from sklearn.neighbors import KNeighborsClassifier

    scores = []
    for seed in SEEDS:
        train, test = (load_material(seed)[split] for split in ("train", "test"))
        nearest = KNeighborsClassifier(1).fit(train.digits.reshape(-1, 64), train.labels)
        scores.append(f"{100 * nearest.score(test.digits.reshape(-1, 64), test.labels):.1f} %")
    return _table(["seed of the data set", *map(str, SEEDS)], [["test digits told by 1-NN", *scores]])


def colour_table() -> str:
    """How well the training region with the most similar colours tells a test question of `photo`."""
    shown = [region for some in load_material(0)["train"].regions.values() for region in some]
    colours = np.stack([_colours(region.pixels) for region in shown])
    right = 0
    for record in test_records()["photo"]:
        own = _colours(np.asarray(picture_and_grid(record)[0]))
        right += shown[np.abs(colours - own).sum(axis=1).argmin()].photograph == _gold(record)
    score = f"{right / len(test_records()['photo']):.1%}".replace("%", " %")
    return _table(["test questions of `photo`", "score"], [["told by colours alone", score]])


def _colours(pixels: np.ndarray) -> np.ndarray:
    """Shares of 512 colours in an image."""
    codes = (pixels.reshape(-1, 3) // 32).astype(int) @ (64, 8, 1)
    return np.bincount(codes, minlength=512) / len(codes)


@functools.cache
def test_records() -> dict[str, list]:
    """Test records of the default preset by task."""
    draw = Drawer(0)
    counts = PRESETS["default"].records["test"]
    return {task: [record for job in make_jobs("test", task, counts[task]) for record in draw(job)] for task in TASKS}


def _gold(record) -> str:
    return record.conversation.turns[-1].text


def _short(text: str) -> str:
    """Without the words and marks that are the same in all questions about boxes."""
    return re.sub(r"<ref>.*</ref><box>\[(.*)\]</box>", r"\1", text.replace(REQUEST, "… ")).replace("<", "&lt;")


def _constant(task: str, records: list) -> tuple[str, str]:
    """The gold answer that, given to all questions, scores most; and what it scores."""
    golds, metric = [_gold(record) for record in records], METRICS[TASK_METRICS[task]]
    scores = {answer: sum(metric(answer, [gold]) for gold in golds) / len(golds) for answer in dict.fromkeys(golds)}
    answer = max(scores, key=scores.get)
    return _short(answer), f"{100 * scores[answer]:.1f} %"


def _table(head: list[str], rows: list[list]) -> str:
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    return "\n".join(lines + ["| " + " | ".join(map(str, row)) + " |" for row in rows])


QUICK = {"sources": source_table, "division": division_table, "sizes": size_table, "digits": digit_table}
"""Tables that need no picture."""

DRAWN = {"kinds": kind_table, "pictures": picture_table, "colours": colour_table}


def with_tables(text: str, tables: dict) -> str:
    """The document with every block `<!-- table: NAME -->` ... `<!-- /table -->` of `tables` computed anew."""

    def block(found: re.Match) -> str:
        name = found[1]
        return f"<!-- table: {name} -->\n\n{tables[name]()}\n\n<!-- /table -->" if name in tables else found[0]

    return re.sub(r"<!-- table: (\w+) -->.*?<!-- /table -->", block, text, flags=re.DOTALL)


if __name__ == "__main__":
    document = with_tables(DOCUMENT.read_text(encoding="utf-8"), QUICK | DRAWN)
    if "--write" in sys.argv[1:]:
        DOCUMENT.write_text(document, encoding="utf-8")
    else:
        sys.stdout.write(document)
