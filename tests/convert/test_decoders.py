"""Every family of decoders against its class in `transformers`: packed rows, cached decoding, and folders both ways."""

import dataclasses
import json
from functools import partial

import flax.linen as nn
import jax
import numpy as np
import pytest

from tests import tiny
from tests.convert.references import COMMON, causal
from vlm_jax.convert import internvl_chat
from vlm_jax.convert.decoders import IN_TRANSFORMERS, PHI3, family_for, family_named
from vlm_jax.convert.fields import Fields
from vlm_jax.convert.language_models import open_decoder, write_decoder
from vlm_jax.convert.lazy import materialise
from vlm_jax.errors import UserError
from vlm_jax.models.decoder import Decoder, empty_caches
from vlm_jax.models.layers import Compute

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.torch

WIDE = {"hidden_size": 96, "num_attention_heads": 6}  # heads of 16 channels, of which a part is turned
WINDOW = 5

FAMILIES = {
    "llama, biases": ("Llama", {"attention_bias": True, "mlp_bias": True}),
    "mistral": ("Mistral", {"sliding_window": WINDOW, "head_dim": 10}),
    "qwen2": ("Qwen2", {"tie_word_embeddings": True}),
    "qwen3": ("Qwen3", {"head_dim": 8}),
    "phi3": ("Phi3", {**WIDE, "sliding_window": WINDOW, "partial_rotary_factor": 0.75}),
    "phi": ("Phi", {**WIDE, "partial_rotary_factor": 0.4, "qk_layernorm": True}),
    "stablelm": ("StableLm", {**WIDE, "use_qkv_bias": True}),
    "stablelm, parallel": ("StableLm", {**WIDE, "use_parallel_residual": True}),
    "gemma": ("Gemma", {"head_dim": 10, "num_key_value_heads": 1, "tie_word_embeddings": True}),
    "persimmon": (
        "Persimmon",
        {**WIDE, "num_key_value_heads": 6, "rope_parameters": {"rope_type": "default", "rope_theta": 25000.0}},
    ),
}


@pytest.fixture(scope="module", params=FAMILIES)
def pair(request, tmp_path_factory):
    """The reference, and what is read of its folder."""
    reference = causal(*FAMILIES[request.param])
    folder = tmp_path_factory.mktemp("decoder")
    reference.save_pretrained(folder)
    params, config, family = open_decoder(folder)
    assert family.architecture == type(reference).__name__
    return reference, materialise(params), config


def logits_of(reference, tokens):
    with torch.no_grad():
        return reference(torch.tensor(np.asarray(tokens)[None], dtype=torch.long)).logits.numpy()[0]


def assert_equal_logits(ours, theirs):
    assert np.abs(theirs).max() > 1
    assert np.abs(ours - theirs).max() <= 1e-4


def test_packed_rows(pair):
    """A conversation, one whose end has two branches, and padding: every token sees what it would see alone."""
    reference, params, config = pair
    tokens = np.random.default_rng(0).integers(3, 340, 40)
    alone, shared, first, second = np.arange(13), np.arange(13, 22), np.arange(22, 29), np.arange(29, 37)
    positions, segments, branches = np.zeros((3, 1, 40), np.int32)
    for number, branch, place in ((1, 0, alone), (2, 0, shared), (2, 1, first), (2, 2, second)):
        segments[0, place], branches[0, place] = number, branch
        positions[0, place] = np.arange(len(place)) + (len(shared) if branch else 0)

    def run(decoder):
        return decoder.logits(decoder(decoder.embed(tokens[None]), positions, segments, branches))

    compute = Compute(scan_layers=True)
    found = np.asarray(jax.jit(nn.apply(run, Decoder(config, compute)))({"params": params["decoder"]}))[0]
    assert_equal_logits(found[alone], logits_of(reference, tokens[alone]))
    for branch in (first, second):
        places = np.concatenate([shared, branch])
        assert_equal_logits(found[places], logits_of(reference, tokens[places]))
    assert np.isfinite(found).all()


def test_cached_decoding(pair):
    """Two ragged prompts at once, then token by token, against the logits of the whole."""
    reference, params, config = pair
    lengths, more, slots = np.array([9, 6]), 4, 16
    tokens = np.random.default_rng(1).integers(3, 340, (2, slots))
    expected = [logits_of(reference, row) for row in tokens]

    @jax.jit
    @partial(nn.apply, module=Decoder(config, Compute()))
    def step(decoder, tokens, positions, caches):
        hidden, caches = decoder.step(decoder.embed(tokens), positions, caches)
        return decoder.logits(hidden), caches

    order = np.broadcast_to(np.arange(9), (2, 9))
    positions = np.where(order < lengths[:, None], order, slots)
    caches = empty_caches(config, 2, slots, "float32")
    variables = {"params": params["decoder"]}
    found, caches = step(variables, tokens[:, :9], positions, caches)
    for row, length in enumerate(lengths):
        assert_equal_logits(np.asarray(found)[row, :length], expected[row][:length])
    for position in lengths + np.arange(more)[:, None]:
        token = np.take_along_axis(tokens, position[:, None], axis=1)
        found, caches = step(variables, token, position[:, None].astype(np.int32), caches)
        for row in range(2):
            assert_equal_logits(np.asarray(found)[row, 0], expected[row][position[row]])


def system_of(config):
    system = tiny.system()
    return dataclasses.replace(system, model=dataclasses.replace(system.model, decoder=config))


def test_transformers_reads_what_is_written(pair, tmp_path):
    reference, params, config = pair
    write_decoder(tmp_path / "x", params, system_of(config), tiny.tokenizer())
    again = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "x").eval()
    assert type(again) is type(reference)
    found, wanted = again.state_dict(), reference.state_dict()
    assert found.keys() == wanted.keys()
    for name, value in wanted.items():
        np.testing.assert_array_equal(found[name].numpy(), value.numpy(), err_msg=name)
    tokens = np.arange(3, 43)
    np.testing.assert_array_equal(logits_of(again, tokens), logits_of(reference, tokens))
    assert open_decoder(tmp_path / "x")[1] == config


REFUSED = [
    ("stablelm", {"qk_layernorm": True}, "qk_layernorm must be False, is True"),
    ("stablelm", {"use_qkv_bias": 1}, "use_qkv_bias must be true or false, is 1"),
    ("gemma", {"use_bidirectional_attention": True}, "use_bidirectional_attention must be False, is True"),
    ("gemma", {"hidden_act": "silu"}, "hidden_act must be one of gelu_pytorch_tanh, gelu, is 'silu'"),
    ("persimmon", {"rope_parameters": None}, "rope_theta is missing"),
    ("persimmon", {"num_key_value_heads": 2}, "num_key_value_heads must be 6, is 2"),
    ("mistral", {"attention_bias": True}, "attention_bias must be False, is True"),
    ("mistral", {"sliding_window": 0}, "sliding_window must be a positive whole number, is 0"),
    ("phi", {"head_dim": 8}, "head_dim must be 16, is 8"),
    ("qwen2", {"use_sliding_window": True}, "use_sliding_window must be False, is True"),
]


@pytest.fixture(scope="module")
def configs(tmp_path_factory):
    """`config.json` of every family as `save_pretrained` writes it."""
    folder = tmp_path_factory.mktemp("configs")

    def content(name, changes):
        getattr(transformers, f"{name}Config")(**{**COMMON, **changes}).save_pretrained(folder)
        return json.loads((folder / "config.json").read_text())

    return {family: content(*FAMILIES[family]) for family in FAMILIES}


def read(content):
    """The decoder that a config describes."""
    fields = Fields(content, "config.json")
    config = family_named(IN_TRANSFORMERS, "model_type", content["model_type"], "config.json").read(fields)
    fields.finish()
    return config


@pytest.mark.parametrize(("family", "changes", "message"), REFUSED)
def test_what_our_code_does_not_have_is_refused_by_name(configs, family, changes, message):
    with pytest.raises(UserError, match=message):
        read({**configs[family], **changes})


def test_missing_entries_are_what_transformers_makes_of_them(configs):
    """Of `sliding_window`, null and missing are two things."""
    assert read({**configs["mistral"], "max_position_embeddings": 8192, "sliding_window": None}).sliding_window is None
    for family in ("mistral", "phi", "stablelm", "gemma", "persimmon"):
        content = {**configs[family], "max_position_embeddings": 8192, "rope_theta": 3e4}
        for name in ("sliding_window", "rope_parameters", "tie_word_embeddings", "qk_layernorm"):
            content.pop(name, None)
        ours, theirs = read(content), transformers.AutoConfig.for_model(**content)
        assert ours.rope_theta == theirs.rope_parameters["rope_theta"] == 3e4
        assert ours.rotary_fraction == theirs.rope_parameters.get("partial_rotary_factor", 1.0)
        assert ours.sliding_window == getattr(theirs, "sliding_window", None)
        assert ours.tie_embeddings == theirs.tie_word_embeddings
        assert (ours.qk_norm != "none") == getattr(theirs, "qk_layernorm", False)


def test_a_window_that_holds_all_is_none(configs):
    """Phi-3-mini-128k has one of twice its context."""
    assert read({**configs["phi3"], "sliding_window": 512}).sliding_window is None


def test_a_decoder_of_no_family_is_not_written(tmp_path):
    decoder = dataclasses.replace(tiny.system().model.decoder, parallel=True)
    with pytest.raises(UserError, match=r"model\.decoder: no family of transformers has"):
        write_decoder(tmp_path / "x", tiny.params(), system_of(decoder), tiny.tokenizer())
    assert not list(tmp_path.iterdir())


def test_internvls_own_phi3_turns_whole_heads(configs):
    config = read(configs["phi3"])
    assert family_for(IN_TRANSFORMERS, config) is PHI3
    assert family_for(internvl_chat.FAMILIES, config) is None
    whole = dataclasses.replace(config, rotary_fraction=1.0)
    assert family_for(internvl_chat.FAMILIES, whole).model_type == "phi3"
