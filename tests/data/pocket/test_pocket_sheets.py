from PIL import Image

from vlm_jax.data.pocket.__main__ import main
from vlm_jax.data.pocket.scene import TASKS


def test_a_contact_sheet_for_each_task(tmp_path, capsys):
    main([f"--out={tmp_path / 'sheets'}", "--pictures=2", "--split=validation"])
    written = capsys.readouterr().out.split()
    assert written == [str(tmp_path / "sheets" / f"{task}.png") for task in TASKS]
    for path in written:
        with Image.open(path) as sheet:
            assert sheet.width > 200
            assert len(sheet.convert("RGB").getcolors(1 << 20)) > 50
