import errno
import os

import pytest

from vlm_jax.files import is_full_disk, share, write_atomically


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


def test_what_was_a_temporary_file_is_shared_as_its_folder_is(tmp_path):
    path = tmp_path / "weights"
    path.touch(mode=0o600)
    for folder, expected in ((0o755, 0o644), (0o700, 0o600), (0o775, 0o664)):
        tmp_path.chmod(folder)
        share(path)
        assert path.stat().st_mode & 0o777 == expected
