import errno
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import vlm_jax.checkpoints
from vlm_jax.checkpoints import Checkpoints, complete, read_params
from vlm_jax.errors import UserError

PARAMS = {"vision": {"layers": {"0": {"kernel": jnp.arange(6.0).reshape(2, 3)}}}, "decoder": {"embedding": jnp.ones(4)}}
MOMENTS = ({"mu": jnp.full(3, 2.0)}, jnp.int32(5), ())


def shapes(tree):
    place = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place), tree)


def no_space(*args, **kwargs):
    raise OSError(errno.ENOSPC, "No space left on device")


@pytest.fixture
def saved(tmp_path):
    checkpoints = Checkpoints(tmp_path / "c", keep=2)
    for number in (10, 20):
        params = jax.tree.map(lambda x, n=number: x + n, PARAMS)
        checkpoints.save(number, params, MOMENTS, {"step": number}, permanent=number == 10)
    checkpoints.finish()
    return checkpoints


def test_round_trip_is_bit_equal(saved):
    assert saved.latest() == 20
    assert saved.meta(20)["step"] == 20
    restored = saved.restore_params(20, shapes(PARAMS))
    jax.tree.map(np.testing.assert_array_equal, restored, jax.tree.map(lambda x: x + 20, PARAMS))
    jax.tree.map(np.testing.assert_array_equal, saved.restore_optimizer(20, shapes(MOMENTS)), MOMENTS)
    params, meta = read_params(saved.folder)
    jax.tree.map(np.testing.assert_array_equal, params, jax.tree.map(lambda x: np.asarray(x + 20), PARAMS))
    assert meta["step"] == 20
    assert isinstance(params["decoder"]["embedding"], np.ndarray)


def test_keeps_the_newest_and_the_permanent(saved):
    for number in (30, 40, 50):
        saved.save(number, PARAMS, MOMENTS, {})
    saved.finish()
    assert complete(saved.folder) == [10, 40, 50]


def test_what_has_another_name_stays(saved):
    for name in ("best", "00000030"):
        (saved.folder / name).mkdir()
        (saved.folder / name / "file").touch()
    (saved.folder / "best" / "manifest.json").write_text("{}")
    (saved.folder / "notes.txt").touch()
    again = Checkpoints(saved.folder)
    assert {entry.name for entry in saved.folder.iterdir()} == {"00000010", "00000020", "best", "notes.txt"}
    assert again.latest() == 20
    again.close()


def test_another_format_is_refused(saved):
    path = saved.folder / "00000020" / "meta.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "format": 1}))
    with pytest.raises(UserError, match=r"00000020: written by another version of vlm_jax"):
        saved.meta(20)


def test_any_flipped_byte_is_found(saved):
    file = max((p for p in (saved.folder / "00000020").rglob("*") if p.is_file()), key=lambda p: p.stat().st_size)
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)
    with pytest.raises(UserError, match=r"is damaged; delete the folder .*00000020"):
        saved.verify(20)
    with pytest.raises(UserError, match="is damaged"):
        read_params(saved.folder)
    saved.verify(10)


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"meta.json": "0"}'])
def test_a_damaged_manifest_is_one_line(saved, content):
    (saved.folder / "00000020" / "manifest.json").write_text(content)
    for read in (lambda: saved.verify(20), lambda: read_params(saved.folder)):
        with pytest.raises(UserError, match=r"00000020/manifest\.json"):
            read()


def test_a_checkpoint_without_manifest_does_not_exist(saved):
    (saved.folder / "00000020" / "manifest.json").unlink()
    assert saved.latest() == 10
    Checkpoints(saved.folder)
    assert not (saved.folder / "00000020").exists()


def test_missing_number_is_named(saved):
    with pytest.raises(UserError, match=r"no checkpoint 15 \(there are: 10, 20\)"):
        read_params(saved.folder, 15)


def test_full_disk_is_one_line_and_loses_nothing(saved, monkeypatch):
    monkeypatch.setattr(vlm_jax.checkpoints, "write_atomically", no_space)
    with pytest.raises(UserError, match=r"no space left on the disk \(checkpoint 20 is complete\)"):
        saved.save(30, PARAMS, MOMENTS, {})
    monkeypatch.undo()
    monkeypatch.setattr(vlm_jax.checkpoints, "_digest", no_space)  # in the background, after the save began
    saved.save(30, PARAMS, MOMENTS, {})
    with pytest.raises(UserError, match=r"no space left on the disk \(checkpoint 20 is complete\)"):
        saved.finish()
    assert complete(saved.folder) == [10, 20]


def test_closing_after_a_full_disk_says_the_same_line(saved, monkeypatch):
    monkeypatch.setattr(vlm_jax.checkpoints, "_digest", no_space)
    monkeypatch.setattr(saved._optimizer_saver, "close", no_space)  # as Orbax does when a write of its own failed
    saved.save(30, PARAMS, MOMENTS, {})
    with pytest.raises(UserError, match="no space left"):
        saved.close()
