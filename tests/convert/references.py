"""What several tests of conversion need of `transformers`."""

import importlib.util

import pytest

from tests import tiny

COMMON = {
    "vocab_size": 340, "hidden_size": 48, "num_hidden_layers": 2, "num_attention_heads": 6, "num_key_value_heads": 2,
    "intermediate_size": 56, "max_position_embeddings": 256, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
    "tie_word_embeddings": False,
}  # fmt: skip

has_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="AutoProcessor wants torchvision"
)


def causal(name: str, changes: dict):
    """A small language model of this family with random perturbed weights; `changes` of its `COMMON` config."""
    import torch
    import transformers

    config = getattr(transformers, f"{name}Config")(**{**COMMON, **changes})
    torch.manual_seed(0)
    reference = getattr(transformers, f"{name}ForCausalLM")(config).eval()
    tiny.shake(reference)
    return reference
