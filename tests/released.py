"""The `config.json` of released models in InternVL's own layout, and folders of random weights for them.

Facts: hub configs of OpenGVLab/InternVL2-{1B,2B,4B} and the models they were made of. Only fields that matter are here.
The long factors of Phi-3 are stand-ins of the right number: they are no parameters.
"""

import json
import math
from pathlib import Path

import numpy as np

from vlm_jax.convert import table
from vlm_jax.convert.fields import CONFIG
from vlm_jax.convert.folders import parameter_shapes
from vlm_jax.convert.internvl_chat import read_config, rules
from vlm_jax.convert.safetensors_folder import DTYPES, write_weights
from vlm_jax.system import System

VISION = {
    "architectures": ["InternVisionModel"], "model_type": "intern_vit_6b", "hidden_size": 1024, "num_hidden_layers": 24,
    "num_attention_heads": 16, "intermediate_size": 4096, "hidden_act": "gelu", "norm_type": "layer_norm",
    "layer_norm_eps": 1e-6, "qkv_bias": True, "qk_normalization": False, "initializer_factor": 1.0,
    "initializer_range": 0.02, "drop_path_rate": 0.1, "dropout": 0.0, "attention_dropout": 0.0, "patch_size": 14,
    "image_size": 448, "num_channels": 3,
}  # fmt: skip

DECODERS = {
    "1b": {
        "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "vocab_size": 151655, "hidden_size": 896,
        "num_hidden_layers": 24, "num_attention_heads": 14, "num_key_value_heads": 2, "intermediate_size": 4864,
        "rms_norm_eps": 1e-6, "hidden_act": "silu", "rope_theta": 1e6, "max_position_embeddings": 32768,
        "tie_word_embeddings": False, "use_sliding_window": False,
    },
    "2b": {
        "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "vocab_size": 92553, "hidden_size": 2048,
        "num_hidden_layers": 24, "num_attention_heads": 16, "num_key_value_heads": 8, "intermediate_size": 8192,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 1e6, "max_position_embeddings": 32768, "bias": False,
        "rope_scaling": {"type": "dynamic", "factor": 2.0}, "tie_word_embeddings": False,
    },
    "4b": {
        "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "vocab_size": 32020, "hidden_size": 3072,
        "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "intermediate_size": 8192,
        "rms_norm_eps": 1e-5, "hidden_act": "silu", "rope_theta": 1e4, "max_position_embeddings": 131072,
        "original_max_position_embeddings": 4096, "sliding_window": 262144, "tie_word_embeddings": False,
        "rope_scaling": {
            "type": "su", "short_factor": np.linspace(1, 3, 48).tolist(), "long_factor": np.linspace(1, 65, 48).tolist()
        },
    },
}  # fmt: skip

TEMPLATES = {"1b": "Hermes-2", "2b": "internlm2-chat", "4b": "phi3-chat"}

PARAMETERS = {"1b": 938_158_976, "2b": 2_205_754_368, "4b": 4_146_855_936}


def config(size: str, **decoder) -> dict:
    """`config.json` of InternVL2-1B, -2B or -4B; `decoder` changes fields of its `llm_config`."""
    return {
        "architectures": ["InternVLChatModel"], "model_type": "internvl_chat", "downsample_ratio": 0.5,
        "dynamic_image_size": True, "force_image_size": 448, "min_dynamic_patch": 1, "max_dynamic_patch": 12,
        "use_thumbnail": True, "pad2square": False, "ps_version": "v2", "select_layer": -1, "use_backbone_lora": 0,
        "use_llm_lora": 0, "template": TEMPLATES[size], "vision_config": VISION,
        "llm_config": {**DECODERS[size], **decoder},
    }  # fmt: skip


def system(size: str, **decoder) -> System:
    return read_config(config(size, **decoder), {})


def write_random(folder: Path, size: str, tokenizer, dtype: str = "bfloat16", **decoder) -> None:
    """A folder as released, with random weights of sizes that keep activations and logits near 1."""
    content = config(size, **decoder)
    described = system(size, **decoder)
    folder.mkdir(parents=True)
    plan = table.plan(rules(content), parameter_shapes(described.model))
    rng = np.random.default_rng(0)

    def tensors():
        for key, stored in plan.items():
            small = math.prod(stored.shape[1:]) ** -0.5 if len(stored.shape) > 1 else 0.1
            values = rng.standard_normal(stored.shape, np.float32) * small
            if key.endswith(("norm.weight", "norm1.weight", "norm2.weight", "mlp1.0.weight", "ls1", "ls2")):
                values += 1
            yield key, values.astype(DTYPES[dtype])

    sizes = {key: math.prod(stored.shape) * DTYPES[dtype].itemsize for key, stored in plan.items()}
    write_weights(folder, tensors(), sizes)
    tokenizer.save(folder, described.chat_template)
    (folder / CONFIG).write_text(json.dumps(content))
