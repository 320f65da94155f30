"""`python -m vlm_jax.convert`: round trips between all layouts, and the comparison with the reference."""

import itertools
import shutil

import ml_dtypes
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import tiny
from vlm_jax import globs
from vlm_jax.convert.__main__ import main
from vlm_jax.convert.folders import open_folder, read_folder, write_folder
from vlm_jax.convert.towers import read_tower
from vlm_jax.convert.workdirs import open_model
from vlm_jax.errors import UserError
from vlm_jax.inference.model import load


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """One model in every layout."""
    root = tmp_path_factory.mktemp("sources")
    write_folder(root / "hf", tiny.params(), tiny.system(), tiny.tokenizer())
    for layout in ("internvl", "orbax"):
        assert main([f"--source={root / 'hf'}", f"--target={root / layout}", f"--layout={layout}"]) == 0
    return root


def total(text: str) -> list[str]:
    return next(line for line in text.splitlines() if line.startswith("total")).split()


def files(folder) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


@pytest.mark.parametrize(("first", "second"), itertools.permutations(["hf", "internvl", "orbax"], 2))
def test_round_trips(sources, tmp_path, capsys, first, second):
    """There and back: parameters, system and tokenizer are the same to the last bit, folders file by file."""
    main([f"--source={sources / first}", f"--target={tmp_path / 'there'}", f"--layout={second}"])
    there = total(capsys.readouterr().out)
    main([f"--source={tmp_path / 'there'}", f"--target={tmp_path / 'back'}", f"--layout={first}"])
    assert total(capsys.readouterr().out) == there
    params, system, tokenizer = open_model(tmp_path / "back")
    assert system == tiny.system()
    assert tokenizer.to_json() == tiny.tokenizer().to_json()
    found, wanted = globs.flatten(params), globs.flatten(tiny.params())
    assert found.keys() == wanted.keys()
    for path, array in found.items():
        np.testing.assert_array_equal(np.asarray(array), wanted[path], err_msg=path)
    assert files(tmp_path / "back") == files(sources / first)


def test_bfloat16_goes_through_unchanged(sources, tmp_path):
    main([f"--source={sources / 'orbax'}", f"--target={tmp_path / 'half'}", "--layout=internvl", "--dtype=bfloat16"])
    main([f"--source={tmp_path / 'half'}", f"--target={tmp_path / 'orbax'}", "--layout=orbax"])
    main([f"--source={tmp_path / 'orbax'}", f"--target={tmp_path / 'hf'}", "--layout=hf"])
    wanted = globs.flatten(tiny.params())
    for path, array in globs.flatten(read_folder(tmp_path / "hf").params).items():
        assert array.dtype == ml_dtypes.bfloat16
        np.testing.assert_array_equal(array, wanted[path].astype(ml_dtypes.bfloat16))


def test_nothing_is_rounded_unless_it_is_asked_for(sources, tmp_path):
    """Norms in float32 among weights in bfloat16."""
    folder = shutil.copytree(sources / "internvl", tmp_path / "mixed")
    stored = load_file(folder / "model.safetensors")
    mixed = {key: value if "norm" in key else value.astype(ml_dtypes.bfloat16) for key, value in stored.items()}
    save_file(mixed, folder / "model.safetensors", metadata={"format": "pt"})
    for layout in ("hf", "internvl"):
        main([f"--source={folder}", f"--target={tmp_path / layout}", f"--layout={layout}"])
    for key, value in load_file(tmp_path / "internvl/model.safetensors").items():
        np.testing.assert_array_equal(value, mixed[key].astype(np.float32), err_msg=key)
    save_file(mixed | {"mlp1.0.bias": mixed["mlp1.0.bias"].astype(np.float16)}, folder / "model.safetensors")
    with pytest.raises(UserError, match="weights are float16; choose"):
        main([f"--source={folder}", f"--target={tmp_path / 'x'}", "--layout=hf"])


def test_a_converted_model_answers_the_same(sources):
    question = dict(prompt="What is the total?", images=[tiny.png(70, 68, 3)], max_new_tokens=12)
    answers = {load(sources / layout).generate(**question) for layout in ("hf", "internvl", "orbax")}
    assert answers == {tiny.model().generate(**question)}


def test_flags_that_do_not_go_together(sources, tmp_path):
    target = f"--target={tmp_path / 'x'}"
    for flags in (
        [],
        ["--vision=a"],
        [f"--source={sources / 'hf'}", "--decoder=b"],
        ["--vision=a", "--decoder=b", "--step=1"],
    ):
        with pytest.raises(UserError, match="either --source"):
            main([*flags, target, "--layout=hf"])
    with pytest.raises(UserError, match="has no checkpoint 3"):
        main([f"--source={sources / 'hf'}", "--step=3", target, "--layout=hf"])
    with pytest.raises(UserError, match=r"no checkpoint 3 \(there are: 0\)"):
        main([f"--source={sources / 'orbax'}", "--step=3", target, "--layout=hf"])
    with pytest.raises(UserError, match="already exists"):
        main([f"--source={sources / 'hf'}", f"--target={sources / 'orbax'}", "--layout=orbax"])
    assert not list(tmp_path.iterdir())


@pytest.mark.torch
@pytest.mark.parametrize("layout", ["hf", "internvl", "orbax"])
def test_verify(sources, tmp_path, capsys, layout):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    main([f"--source={sources / 'hf'}", f"--target={tmp_path / 'x'}", f"--layout={layout}", "--verify"])
    line = capsys.readouterr().out.splitlines()[-1]
    assert line.startswith("verified: max |difference| of logits ")
    equal, tokens = line.split("greedy tokens equal ")[1].split(" of ")
    assert int(equal) == int(tokens) > 10
    assert [path.name for path in tmp_path.iterdir()] == ["x"]


@pytest.mark.torch
def test_verify_finds_a_wrong_weight(sources, tmp_path, monkeypatch):
    pytest.importorskip("torch")
    pytest.importorskip("transformers")
    from vlm_jax.inference import verify

    folder = shutil.copytree(sources / "hf", tmp_path / "x")
    ours = verify._ours(open_folder(folder), 64, verify.default_prompts())
    monkeypatch.setattr(verify, "_ours", lambda *_: ours)  # what we computed before the weights changed
    stored = load_file(folder / "model.safetensors")
    stored["vision_tower.encoder.layer.1.mlp.fc1.bias"] += 1.0
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    agreement = verify.verify(folder)
    assert agreement.difference > 0.01
    assert agreement.divergence > 1e-6
    assert not agreement.holds


def test_the_encoder_alone(sources, tmp_path, capsys):
    for layout in ("hf", "orbax"):
        target = tmp_path / layout
        main([f"--source={sources / layout}", "--part=vision", f"--target={target}", "--layout=internvl"])
        params, vision = read_tower(target)
        assert vision == tiny.system().model.vision
        for path, array in globs.flatten(params).items():
            np.testing.assert_array_equal(array, globs.flatten(tiny.params())[path])
    assert total(capsys.readouterr().out)[1] == f"{sum(x.size for x in globs.flatten(params).values()):,}"


@pytest.mark.torch
def test_a_clip_becomes_an_internvit(tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.CLIPVisionConfig(
        hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4, image_size=28, patch_size=14
    )
    transformers.CLIPVisionModel(config).save_pretrained(tmp_path / "clip")
    flags = ["--part=vision", "--image-size=56", "--layout=internvl"]
    main([f"--source={tmp_path / 'clip'}", f"--target={tmp_path / 'student'}", *flags])
    params, vision = read_tower(tmp_path / "student")
    assert (vision.image_size, vision.activation, vision.layer_scale) == (56, "gelu", 1.0)
    assert not vision.embedding_norm
    assert params["vision"]["position_embedding"].shape == (17, 32)


@pytest.mark.torch
def test_the_decoder_alone(sources, tmp_path):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    main([f"--source={sources / 'internvl'}", "--part=decoder", f"--target={tmp_path / 'x'}", "--layout=hf"])
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "x").eval()
    tokens = np.random.default_rng(0).integers(0, 330, (1, 40))
    with torch.no_grad():
        theirs = reference(torch.tensor(tokens)).logits.numpy()
    assert np.abs(np.asarray(tiny.model().logits(tokens)) - theirs).max() <= 1e-4
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "x")
    assert tokenizer("the total").input_ids == tiny.tokenizer().encode("the total")


def test_parts_have_their_layouts(sources, tmp_path):
    source, target = f"--source={sources / 'hf'}", f"--target={tmp_path / 'x'}"
    for part, layout in (("vision", "hf"), ("decoder", "orbax")):
        with pytest.raises(UserError, match=rf"--part={part} is written in --layout="):
            main([source, target, f"--part={part}", f"--layout={layout}"])
    with pytest.raises(UserError, match="image size of a whole model"):
        main([source, target, "--part=vision", "--layout=internvl", "--image-size=64"])


def test_flags_without_a_meaning(sources, tmp_path):
    main([f"--source={sources / 'hf'}", "--part=vision", f"--target={tmp_path / 'tower'}", "--layout=internvl"])
    part = [f"--source={tmp_path / 'tower'}", "--part=vision", f"--target={tmp_path / 'x'}", "--layout=internvl"]
    with pytest.raises(UserError, match="not a training workdir, it has no checkpoint 3"):
        main([*part, "--step=3"])
    with pytest.raises(UserError, match="--image-size must be positive, got 0"):
        main([*part, "--image-size=0"])
    with pytest.raises(UserError, match=r"--seed must lie in 0\.\."):
        main(["--vision=a", "--decoder=b", f"--target={tmp_path / 'x'}", "--layout=hf", f"--seed={2**80}"])
    assert [path.name for path in tmp_path.iterdir()] == ["tower"]


def test_links_out_of_a_folder(sources, tmp_path):
    """Refused, but for those of a hub's cache."""
    copy = shutil.copytree(sources / "hf", tmp_path / "copy")
    (copy / "model.safetensors").unlink()
    (copy / "model.safetensors").symlink_to(sources / "hf/model.safetensors")
    with pytest.raises(UserError, match=r"copy/model\.safetensors: links to a file outside the folder"):
        read_folder(copy)
    cache = tmp_path / "models--x--y"
    (cache / "snapshots").mkdir(parents=True)
    shutil.copytree(sources / "hf", cache / "blobs")
    (cache / "snapshots/abc").mkdir()
    for file in (cache / "blobs").iterdir():
        (cache / "snapshots/abc" / file.name).symlink_to(f"../../blobs/{file.name}")
    assert read_folder(cache / "snapshots/abc").system == tiny.system()
