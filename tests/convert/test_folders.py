import dataclasses
import itertools
import json
import shutil
import tracemalloc

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import tiny
from vlm_jax import globs
from vlm_jax.checkpoints import Checkpoints
from vlm_jax.config import build, to_plain
from vlm_jax.convert.__main__ import main
from vlm_jax.convert.folders import read_folder, write_folder
from vlm_jax.convert.safetensors_folder import write_weights
from vlm_jax.convert.summary import summarise
from vlm_jax.convert.workdirs import read_workdir
from vlm_jax.errors import UserError
from vlm_jax.system import System


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("convert") / "export"
    write_folder(folder, {**tiny.params(), "teacher": {}}, tiny.system(), tiny.tokenizer())
    return folder


@pytest.fixture
def copy(exported, tmp_path):
    return shutil.copytree(exported, tmp_path / "copy")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    """What a training run leaves: two checkpoints, of which the older holds other numbers and a teacher."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "config.json").write_text(json.dumps({"name": "x", "system": to_plain(tiny.system())}))
    tiny.tokenizer().save(folder / "tokenizer")
    saver = Checkpoints(folder / "checkpoints")
    older = tiny.perturbed(tiny.params(), seed=5)
    saver.save(3, {**older, "teacher": {"x": np.ones(3, np.float32)}}, {"m": np.ones(2)}, {"stage": "align"})
    saver.save(7, tiny.params(), {"m": np.ones(2)}, {"stage": "tune"})
    saver.close()
    return folder, older


def assert_equal(first, second):
    first, second = globs.flatten(first), globs.flatten(second)
    assert first.keys() == second.keys()
    for path, value in first.items():
        assert value.dtype == second[path].dtype, path
        np.testing.assert_array_equal(value, second[path], err_msg=path)


def test_round_trip_is_bit_equal(exported):
    params, system, tokenizer = read_folder(exported)
    assert_equal(params, tiny.params())
    assert system == tiny.system()
    assert tokenizer.to_json() == tiny.tokenizer().to_json()
    assert not [p for p in exported.parent.iterdir() if p != exported], "something was left aside"


def test_bfloat16_without_detours(tmp_path):
    write_folder(tmp_path / "half", tiny.params(), tiny.system(), tiny.tokenizer(), "bfloat16")
    stored = load_file(tmp_path / "half" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {np.dtype(ml_dtypes.bfloat16)}
    params, system, tokenizer = read_folder(tmp_path / "half")
    write_folder(tmp_path / "again", params, system, tokenizer, "bfloat16")
    again = load_file(tmp_path / "again" / "model.safetensors")
    assert all((again[key] == stored[key]).all() for key in stored)


def test_shards(tmp_path):
    write_folder(tmp_path / "s", tiny.params(), tiny.system(), tiny.tokenizer(), shard_bytes=60_000)
    index = json.loads((tmp_path / "s" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 2
    assert all((tmp_path / "s" / file).stat().st_size < 70_000 for file in files)
    assert_equal(read_folder(tmp_path / "s")[0], tiny.params())
    lost = sorted(files)[1]
    (tmp_path / "s" / lost).unlink()
    with pytest.raises(UserError, match=f"{lost}: this shard is missing"):
        read_folder(tmp_path / "s")


@pytest.mark.torch
def test_transformers_loads_it(exported):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    reference, info = transformers.AutoModelForImageTextToText.from_pretrained(exported, output_loading_info=True)
    assert {name: list(keys) for name, keys in info.items() if keys} == {}
    batch = tiny.model().batch(tiny.conversations())
    with torch.no_grad():
        theirs = reference.eval()(**tiny.torch_inputs(batch)).logits.numpy()
    real = batch.segments > 0
    assert np.abs(np.asarray(tiny.model().logits(batch)) - theirs)[real].max() <= 1e-4
    assert reference.generation_config.eos_token_id == tiny.tokenizer().token_id("<|im_end|>")

    tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
    assert (
        tokenizer.context_image_token_id
        == tiny.tokenizer().token_id("<IMG_CONTEXT>")
        == reference.config.image_token_id
    )
    turns = [{"role": "user", "content": "What is the total?"}]
    ids = tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)["input_ids"]
    assert ids == batch.tokens[1][batch.segments[1] > 0].tolist()

    processor = transformers.AutoImageProcessor.from_pretrained(exported, backend="pil")
    from PIL import Image

    assert processor.crop_to_patches
    assert processor(images=[Image.new("RGB", (70, 68))], return_tensors="np")["pixel_values"].shape == (5, 3, 32, 32)


def test_bad_weights_are_told_at_once(copy):
    stored = load_file(copy / "model.safetensors")
    del stored["vision_tower.encoder.layer.1.lambda_2"]
    stored["language_model.model.layers.2.mlp.up_proj.weight"] = np.zeros((48, 32), np.float32)
    stored["multi_modal_projector.linear_1.bias"] = np.zeros(31, np.float32)
    save_file(stored, copy / "model.safetensors")
    with pytest.raises(UserError) as error:
        read_folder(copy)
    for part in (
        "3 problems",
        "missing: vision_tower.encoder.layer.1.lambda_2",
        "not used by this model: language_model.model.layers.2.mlp.up_proj.weight",
        "wrong shape: multi_modal_projector.linear_1.bias is 31, the config asks for 32",
    ):
        assert part in str(error.value)


NUMBERS = (
    "downsample_ratio", "vision_config.hidden_size", "vision_config.num_hidden_layers",
    "vision_config.layer_norm_eps", "text_config.vocab_size", "text_config.num_attention_heads",
    "text_config.num_key_value_heads", "text_config.max_position_embeddings", "text_config.rms_norm_eps",
)  # fmt: skip
NO_NUMBERS = ("x", [], {"a": 1}, True, 0, -1)  # nor one that these fields may have


@pytest.mark.parametrize(
    ("name", "value"),
    [*itertools.product(NUMBERS, NO_NUMBERS), *itertools.product(["template"], NO_NUMBERS[1:])],
)
def test_a_config_with_values_of_another_kind(copy, name, value):
    config = json.loads((copy / "config.json").read_text())
    *parts, last = name.split(".")
    part = config[parts[0]] if parts else config
    part[last] = value
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=rf"config\.json: {name} must be "):
        read_folder(copy)


@pytest.mark.parametrize("damage", ["truncated", "header", "pickle", "outside"])
def test_damaged_files_are_one_clear_error(copy, damage):
    file = copy / "model.safetensors"
    data = file.read_bytes()
    expected = "not a readable safetensors file"
    if damage == "truncated":
        file.write_bytes(data[:-100])
    elif damage == "header":
        file.write_bytes((2**40).to_bytes(8, "little") + data[8:])
    elif damage == "pickle":
        file.rename(copy / "pytorch_model.bin")
        expected = "is a pickle, which can run code"
    else:
        file.unlink()
        index = {"weight_map": {"x": "../elsewhere.safetensors"}}
        (copy / "model.safetensors.index.json").write_text(json.dumps(index))
        expected = "names a file outside the folder"
    with pytest.raises(UserError, match=expected):
        read_folder(copy)


@pytest.mark.parametrize("placed", [None, [], {"x": 1}, {"x": 1, "y": "model.safetensors"}])
def test_an_index_of_another_kind(copy, placed):
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": placed}))
    with pytest.raises(UserError, match=r"index\.json: not an index of shards"):
        read_folder(copy)


def test_one_file_goes_before_an_index(copy):
    """As in `transformers`: the index may be what an older, larger model has left."""
    (copy / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"x": "old.safetensors"}}))
    assert read_folder(copy).system == tiny.system()


def test_links_in_a_circle(copy):
    (copy / "a").symlink_to("a")
    assert read_folder(copy).system == tiny.system()


def test_the_current_folder_as_target(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    write_folder(".", tiny.params(), tiny.system(), tiny.tokenizer())
    assert read_folder(tmp_path / "here").system == tiny.system()
    assert [path.name for path in tmp_path.iterdir()] == ["here"]


def test_one_shard_is_held_at_a_time(tmp_path):
    size, count = 1 << 20, 12
    tracemalloc.start()
    tensors = ((f"t{i}", np.full(size // 4, i, np.float32)) for i in range(count))
    write_weights(tmp_path, tensors, {f"t{i}": size for i in range(count)}, shard_bytes=4 * size)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(list(tmp_path.glob("*.safetensors"))) == 3
    assert peak < 6 * size


def test_unknown_configs(copy):
    config = json.loads((copy / "config.json").read_text())
    original = json.dumps(config)
    config["vision_config"]["hidden_act"] = "relu"
    config["vision_config"]["use_mean_pooling"] = False
    config["text_config"]["rope_scaling"] = {"type": "dynamic", "factor": 2.0}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError) as error:
        read_folder(copy)
    assert "vision_config.use_mean_pooling must be True, is False" in str(error.value)
    assert "vision_config.hidden_act must be one of" in str(error.value)

    config = json.loads(original)
    config["text_config"]["rope_scaling"] = {"type": "yarn", "factor": 2.0}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"text_config\.rope_scaling must be one of .*, is 'yarn'"):
        read_folder(copy)

    config["model_type"] = "llama"
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"config.json: model_type is 'llama'; known: internvl, llava, .*internvl_chat"):
        read_folder(copy)


def test_a_system_without_counterpart_writes_nothing(tmp_path):
    fields = tiny.system_fields()
    fields["layout"]["thumbnail"] = False
    with pytest.raises(UserError, match=r"layout\.thumbnail must be True"):
        write_folder(tmp_path / "x", tiny.params(), build(System, fields), tiny.tokenizer())
    assert not list(tmp_path.iterdir())


def test_an_existing_target_is_kept(exported, tmp_path):
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "mine.txt").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        write_folder(tmp_path / "x", tiny.params(), tiny.system(), tiny.tokenizer())
    write_folder(tmp_path / "x", tiny.params(), tiny.system(), tiny.tokenizer(), overwrite=True)
    assert sorted(p.name for p in (tmp_path / "x").iterdir()) == sorted(p.name for p in exported.iterdir())


def test_a_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("vlm_jax.convert.safetensors_folder.save_file", full)
    with pytest.raises(UserError, match="the disk is full"):
        write_folder(tmp_path / "x", tiny.params(), tiny.system(), tiny.tokenizer())
    assert not list(tmp_path.iterdir())


def test_every_checkpoint_converts(workdir, tmp_path, capsys):
    folder, older = workdir
    assert_equal(read_workdir(folder)[0], tiny.params())
    for arguments, wanted in (([], tiny.params()), (["--step=3"], older)):
        target = tmp_path / f"out{len(arguments)}"
        assert main([f"--source={folder}", f"--target={target}", "--layout=hf", *arguments]) == 0
        assert_equal(read_folder(target)[0], wanted)
        count, size, checksum = summarise(globs.flatten(wanted).items())["total"]
        line = next(line for line in capsys.readouterr().out.splitlines() if line.startswith("total"))
        assert line.split() == ["total", f"{count:,}", f"{size:,}", checksum]
    with pytest.raises(UserError, match=r"no checkpoint 4 \(there are: 3, 7\)"):
        main([f"--source={folder}", f"--target={tmp_path / 'none'}", "--layout=hf", "--step=4"])


def test_a_workdir_that_does_not_fit_its_config(workdir, tmp_path):
    folder = shutil.copytree(workdir[0], tmp_path / "copy")
    decoder = dataclasses.replace(tiny.system().model.decoder, depth=3, mlp_width=40)
    system = to_plain(tiny.system())
    system["model"]["decoder"] = to_plain(decoder)
    (folder / "config.json").write_text(json.dumps({"system": system}))
    with pytest.raises(UserError) as error:
        read_workdir(folder)
    assert "missing: decoder/layers/2/attention/query/kernel" in str(error.value)
    assert "wrong shape: decoder/layers/0/mlp/up/kernel is (32, 48)" in str(error.value)


def test_a_checkpoint_of_a_stage_with_smaller_tiles_is_read_as_that_stage_saw_it(tmp_path):
    system = tiny.system()
    small = {**tiny.params(), "vision": dict(tiny.params()["vision"])}
    small["vision"]["position_embedding"] = small["vision"]["position_embedding"][:5]  # 2 x 2 patches of 8 px
    recipe = {"system": to_plain(system), "stages": [{"image_size": 16}, {"image_size": None}, {}]}
    (tmp_path / "config.json").write_text(json.dumps(recipe))
    tiny.tokenizer().save(tmp_path / "tokenizer")
    saver = Checkpoints(tmp_path / "checkpoints")
    saver.save(1, small, {"m": np.ones(2)}, {"stage": 0})
    saver.save(2, tiny.params(), {"m": np.ones(2)}, {"stage": 1})
    saver.close()
    params, seen, _ = read_workdir(tmp_path, 1)
    assert_equal(params, small)
    assert seen == system.resized(16)
    assert read_workdir(tmp_path).system == system
    (tmp_path / "config.json").write_text(json.dumps({"system": to_plain(system), "stages": [{"image_size": 48}]}))
    with pytest.raises(UserError, match=r"wrong shape: vision/position_embedding is \(5, 24\)"):
        read_workdir(tmp_path, 1)
