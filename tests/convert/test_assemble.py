"""Language models on their own, and models put together of a tower and a language model."""

import json

import flax.linen as nn
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from tests import tiny
from tests.convert.references import causal
from vlm_jax import globs
from vlm_jax.convert.__main__ import main
from vlm_jax.convert.assemble import assemble
from vlm_jax.convert.folders import open_folder
from vlm_jax.convert.language_models import open_decoder
from vlm_jax.convert.lazy import materialise
from vlm_jax.convert.towers import write_tower
from vlm_jax.data.text.templates import IMAGE_CONTEXT, IMAGE_END, IMAGE_START, MARKUP
from vlm_jax.data.text.tokenizer import Tokenizer
from vlm_jax.errors import UserError
from vlm_jax.inference.model import Model
from vlm_jax.models.decoder import Decoder
from vlm_jax.models.layers import Compute

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

NINE = (IMAGE_START, IMAGE_END, IMAGE_CONTEXT, *MARKUP)
DECODERS = {
    "qwen2, tied": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen2, untied": ("Qwen2", {"tie_word_embeddings": False}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "phi3": ("Phi3", {}),
    "llama": ("Llama", {}),
}


def plain_tokenizer() -> Tokenizer:
    """As a language model has it: no tokens for images."""
    content = json.loads(tiny.tokenizer().to_json())
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in (*NINE, "<video>")]
    return Tokenizer._from_json(json.dumps(content), {})


@pytest.fixture(scope="module", params=DECODERS)
def language(request, tmp_path_factory):
    """A language model and its folder, whose vocabulary has more rows than the tokenizer has words."""
    reference = causal(*DECODERS[request.param])
    folder = tmp_path_factory.mktemp("decoder")
    reference.save_pretrained(folder)
    plain_tokenizer().save(folder)
    return reference, folder


@pytest.fixture(scope="module")
def tower(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tower") / "internvit"
    write_tower(folder, tiny.params(), tiny.system().model.vision)
    return folder


def compare(reference, folder, length):
    """Largest difference of logits of a folder's decoder and of the reference, for random text of a length."""
    params, config, _ = open_decoder(folder)
    tokens = np.random.default_rng(0).integers(0, 340, (1, length))
    positions, ones = np.arange(length)[None], np.ones((1, length), np.int32)

    def run(decoder, tokens):
        return decoder.logits(decoder(decoder.embed(tokens), positions, ones, 0 * ones))

    ours = nn.apply(run, Decoder(config, Compute()))({"params": materialise(params)["decoder"]}, tokens)
    with torch.no_grad():
        theirs = reference(torch.tensor(tokens)).logits.numpy()
    assert np.abs(theirs).max() > 1
    return np.abs(ours - theirs).max()


def test_decoders_alone(language):
    assert compare(*language, 70) <= 1e-4


LONG = {
    # Phi-3-mini-128k's limit.
    "longrope": (
        "Phi3",
        {
            "max_position_embeddings": 131072,
            "original_max_position_embeddings": 4096,
            "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 1e4, "original_max_position_embeddings": 4096,
                "short_factor": [1.0, 1.1, 1.5, 2.0], "long_factor": [1.0, 4.0, 30.0, 64.0],
            },
        },
    ),
    # InternLM2's scaling, with a shorter trained length.
    "dynamic NTK": (
        "Llama",
        {
            "max_position_embeddings": 4096,
            "rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e6, "factor": 2.0},
        },
    ),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
def test_beyond_4096_tokens(name, tmp_path):
    family, changes = LONG[name]
    reference = causal(family, {"hidden_size": 16, "num_attention_heads": 2, "num_hidden_layers": 1, **changes})
    reference.save_pretrained(tmp_path)
    for length in (4096, 4097, 5000):
        assert compare(reference, tmp_path, length) <= 1e-4


def test_new_rows_are_the_mean_of_the_old(language, tower):
    reference, folder = language
    model = assemble(tower, folder, template="internvl2")  # of whose tokens the tokenizer lacks none
    known = plain_tokenizer().vocab_size
    # What InternVL's trainer does, done by `transformers`.
    matrices = []
    for old in (reference.get_input_embeddings(), reference.get_output_embeddings()):
        rows = old.weight.detach()[:known]
        matrices.append(torch.cat([rows, rows.mean(dim=0, keepdim=True).expand(len(NINE), -1)]).numpy())
    found = model.params["decoder"]
    np.testing.assert_allclose(found["embedding"], matrices[0], rtol=1e-6, atol=1e-6)
    np.testing.assert_allclose(found["head"]["kernel"].T, matrices[1], rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found["embedding"][:known], matrices[0][:known])
    assert [model.tokenizer.token_id(token) for token in NINE] == list(range(known, known + len(NINE)))
    decoder = model.system.model.decoder
    assert (decoder.vocab_size, decoder.tie_embeddings) == (known + len(NINE), False)


def test_parts_are_unchanged_and_the_connector_is_fresh(language, tower, tmp_path):
    _, folder = language
    model = assemble(tower, folder, seed=1)
    for path, array in globs.flatten(model.params["vision"]).items():
        np.testing.assert_array_equal(np.asarray(array), globs.flatten(tiny.params()["vision"])[path])
    kernels = [np.asarray(assemble(tower, folder, seed=s).params["connector"]["up"]["kernel"]) for s in (1, 1, 2)]
    np.testing.assert_array_equal(kernels[0], kernels[1])
    assert not np.array_equal(kernels[0], kernels[2])
    assert kernels[0].shape == (4 * 24, 48)


@pytest.mark.parametrize("language", ["qwen2, tied"], indirect=True)
def test_command(language, tower, tmp_path, capsys):
    """The folder that `convert --vision --decoder` writes is a whole model, and equals the reference's."""
    _, folder = language
    parts = [f"--vision={tower}", f"--decoder={folder}"]
    main([*parts, f"--target={tmp_path / 'model'}", "--layout=hf", "--verify", "--dtype=float32"])
    assert "verified" in capsys.readouterr().out
    opened = open_folder(tmp_path / "model")
    answer = Model(opened.system, opened.params, opened.tokenizer).generate("What?", [tiny.png(64, 32, 1)], 5)
    assert isinstance(answer, str)


def test_prompt_formats(tower, tmp_path):
    expected = {"Qwen2": "internvl2", "Qwen3": "internvl2_5", "Phi3": "phi3", "Llama": "internvl2"}
    for name, template in expected.items():
        folder = tmp_path / name
        causal(name, {}).save_pretrained(folder)
        plain_tokenizer().save(folder)
        assert assemble(tower, folder).system.template == template


def test_a_tokenizer_without_the_tokens_of_the_prompt_format(tower, tmp_path):
    """Llama's own, as it is released; what is written can be asked."""
    causal("Llama", {}).save_pretrained(tmp_path / "llama")
    content = json.loads(plain_tokenizer().to_json())
    chatml = ["<|im_start|>", "<|im_end|>"]
    content["added_tokens"] = [token for token in content["added_tokens"] if token["content"] not in chatml]
    tokenizer = Tokenizer._from_json(json.dumps(content), {})
    tokenizer.save(tmp_path / "llama")
    main([f"--vision={tower}", f"--decoder={tmp_path / 'llama'}", f"--target={tmp_path / 'x'}", "--layout=internvl"])
    opened = open_folder(tmp_path / "x")
    found = [opened.tokenizer.token_id(token) for token in (*NINE, *chatml)]
    assert found == list(range(tokenizer.vocab_size, tokenizer.vocab_size + 11))
    model = Model(opened.system, opened.params, opened.tokenizer)
    assert isinstance(model.generate("What?", [tiny.png(64, 32, 1)], 5), str)
    with pytest.raises(UserError, match="no prompt format 'vicuna'; there are internvl2"):
        assemble(tower, tmp_path / "llama", template="vicuna")


def test_what_is_no_language_model(tower, tmp_path):
    with pytest.raises(
        UserError, match=r"model_type is 'intern_vit_6b'; known: qwen2, qwen3, llama, mistral, phi3, .*, internlm2"
    ):
        assemble(tower, tower)
    reference = causal("Qwen2", {"tie_word_embeddings": False})
    reference.save_pretrained(tmp_path / "x")
    with pytest.raises(UserError, match="vision towers: intern_vit_6b"):
        assemble(tmp_path / "x", tmp_path / "x")
    config = json.loads((tmp_path / "x/config.json").read_text())
    config["num_hidden_layers"] = 3
    (tmp_path / "x/config.json").write_text(json.dumps(config))
    with pytest.raises(UserError, match=r"missing: model\.layers\.2\.input_layernorm\.weight"):
        open_decoder(tmp_path / "x")


def test_rotary_frequencies_of_older_llamas_are_left_out(tmp_path):
    causal("Llama", {}).save_pretrained(tmp_path)
    stored = load_file(tmp_path / "model.safetensors")
    stored["model.layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    save_file(stored, tmp_path / "model.safetensors", {"format": "pt"})
    assert open_decoder(tmp_path)[1].depth == 2


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 1e6, "rope_parameters": {"rope_type": "default"}},
        {"rope_scaling": {"type": "linear", "factor": 4.0}, "rope_parameters": {"rope_type": "default"}},
        {"rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 3e5}, "rope_theta": 1e6},
    ],
)
def test_rotary_entries_in_two_forms_are_read_as_transformers_reads_them(tmp_path, rope):
    causal("Qwen2", {}).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content.pop("rope_parameters", None)
    (tmp_path / "config.json").write_text(json.dumps({**content, **rope}))
    theirs = transformers.AutoConfig.from_pretrained(tmp_path).rope_parameters
    ours = open_decoder(tmp_path)[1]
    assert ours.rope_theta == theirs["rope_theta"]
    assert ours.rope_scaling.type == theirs["rope_type"].replace("default", "none")


def test_partly_rotated_heads_are_refused_wherever_it_is_said(tmp_path):
    causal("Llama", {}).save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    content["rope_parameters"]["partial_rotary_factor"] = 0.5
    (tmp_path / "config.json").write_text(json.dumps(content))
    with pytest.raises(UserError, match=r"partial_rotary_factor must be 1\.0, is 0\.5"):
        open_decoder(tmp_path)
