"""Published numbers of parameters against the classes of `transformers`, built without weights from releases' configs.

The fields are those of the `config.json` of llava-hf/llava-1.5-*, llava-hf/llava-v1.6-* and adept/fuyu-8b, written out
by hand. Systems that no class covers are sums of parts that `tests/models` hold to theirs.
"""

import pytest

from tests.configs.test_systems import ROOT, load

CLIP = {
    "model_type": "clip_vision_model", "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24,
    "num_attention_heads": 16, "image_size": 336, "patch_size": 14, "projection_dim": 768, "vocab_size": 32000,
}  # fmt: skip
LLAMA_7B = {"model_type": "llama", "vocab_size": 32064, "max_position_embeddings": 4096, "rms_norm_eps": 1e-5}
LLAMA_13B = {
    **LLAMA_7B, "hidden_size": 5120, "intermediate_size": 13824, "num_attention_heads": 40, "num_hidden_layers": 40,
    "num_key_value_heads": 40,
}  # fmt: skip
MISTRAL = {"model_type": "mistral", "vocab_size": 32064, "intermediate_size": 14336, "num_key_value_heads": 8}
YI_34B = {
    "model_type": "llama", "vocab_size": 64064, "hidden_size": 7168, "intermediate_size": 20480,
    "num_attention_heads": 56, "num_hidden_layers": 60, "num_key_value_heads": 8,
}  # fmt: skip
PERSIMMON = {
    "model_type": "persimmon", "vocab_size": 262144, "hidden_size": 4096, "intermediate_size": 16384,
    "num_hidden_layers": 36, "num_attention_heads": 64, "qk_layernorm": True,
}  # fmt: skip

RELEASES = {
    ("llava_1_5", "7b"): ("Llava", LLAMA_7B),
    ("llava_1_5", "13b"): ("Llava", LLAMA_13B),
    ("svit", "13b"): ("Llava", LLAMA_13B),
    ("llava_next", "vicuna_7b"): ("LlavaNext", LLAMA_7B),
    ("llava_next", "vicuna_13b"): ("LlavaNext", LLAMA_13B),
    ("llava_next", "mistral_7b"): ("LlavaNext", MISTRAL),
    ("llava_next", "yi_34b"): ("LlavaNext", YI_34B),
}


@pytest.mark.torch
@pytest.mark.parametrize(("system", "argument"), RELEASES)
def test_llava(system, argument):
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    kind, text = RELEASES[system, argument]
    config = getattr(transformers, f"{kind}Config")(vision_config=CLIP, text_config=text)
    with torch.device("meta"):
        reference = getattr(transformers, f"{kind}ForConditionalGeneration")(config)
    published = load(ROOT / "configs" / "systems" / f"{system}.py").SYSTEM["parameters"]
    assert reference.num_parameters() == published[argument]


@pytest.mark.torch
def test_fuyu():
    torch = pytest.importorskip("torch")
    transformers = pytest.importorskip("transformers")
    config = transformers.FuyuConfig(text_config=PERSIMMON, patch_size=30, num_channels=3, hidden_size=4096)
    with torch.device("meta"):
        reference = transformers.FuyuForCausalLM(config)
    published = load(ROOT / "configs" / "systems" / "otterhd.py").SYSTEM["parameters"]
    assert reference.num_parameters() == published["8b"]
