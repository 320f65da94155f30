import errno
import os

import pytest

from vlm_jax.files import is_full_disk, write_atomically


def test_a_failed_write_keeps_the_old_file_and_leaves_no_scraps(tmp_path, monkeypatch):
    write_atomically(tmp_path / "report.json", "old")

    def full(descriptor):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_atomically(tmp_path / "report.json", "new")
    assert os.listdir(tmp_path) == ["report.json"]
    assert (tmp_path / "report.json").read_text() == "old"


def test_full_disks_are_known_by_number_text_and_cause():
    assert is_full_disk(OSError(errno.EDQUOT, "quota"))
    assert is_full_disk(ValueError("RESOURCE_EXHAUSTED: Disk"))
    outer = RuntimeError("while saving")
    outer.__cause__ = OSError(errno.ENOSPC, "No space left on device")
    assert is_full_disk(outer)
    assert not is_full_disk(PermissionError(errno.EACCES, "no"))
    assert not is_full_disk(None)
