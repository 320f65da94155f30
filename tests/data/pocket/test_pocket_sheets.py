import numpy as np
import pytest
from PIL import Image

from vlm_jax.data.pocket.__main__ import main
from vlm_jax.data.pocket.records import make_record
from vlm_jax.data.pocket.scene import TASKS
from vlm_jax.data.pocket.sheets import example_sheet, picture_and_grid, varied


def test_a_contact_sheet_for_each_task(tmp_path, capsys):
    main([f"--out={tmp_path / 'sheets'}", "--pictures=2", "--split=validation"])
    written = capsys.readouterr().out.split()
    assert written == [str(tmp_path / "sheets" / f"{task}.png") for task in TASKS]
    for path in written:
        with Image.open(path) as sheet:
            assert sheet.width > 200
            assert len(sheet.convert("RGB").getcolors(1 << 20)) > 50


@pytest.mark.parametrize("task", ["count", "point"])
def test_examples_are_of_all_kinds_and_many_grids(material, task):
    records = varied(lambda number: make_record(0, "test", task, number, material["test"]), 6, most=40)
    assert len({record.conversation.id for record in records}) == 6
    assert len({record.kind for record in records}) == {"count": 3, "point": 4}[task]
    assert len({picture_and_grid(record)[1] for record in records}) >= 3
    assert records == varied(lambda number: make_record(0, "test", task, number, material["test"]), 6, most=40)


def test_the_gold_box_is_drawn(material):
    """What an example shows in red lies where the thing is: there is no red without the box."""
    records = [make_record(0, "test", task, 0, material["test"]) for task in ("point", "digits")]
    red = [
        (np.abs(np.asarray(example_sheet([record]).convert("RGB"), int) - (209, 36, 47)).sum(axis=2) < 60).sum()
        for record in records
    ]
    assert red[0] > red[1] + 100
