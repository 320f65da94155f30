"""SVIT: LLaVA-1.5's parts on instructions from Visual Genome, of which a core set takes LLaVA's own place in the mix.

    python -m vlm_jax.main --config=configs/systems/svit.py:13b --workdir=runs/svit \\
        --config.start.vision=clip-vit-large-patch14-336 --config.start.decoder=vicuna-13b-v1.5 \\
        --config.data.train=META.json
    python -m vlm_jax.main --config=configs/systems/svit.py:tiny --workdir=runs/svit-tiny

The model is LLaVA-1.5's. What is its own is the data: 4.2M instructions, and SVIT-core-150K, 157,712 of them that cover
the concepts of benchmarks with as many yes as no; in the mix of 665K it stands for LLaVA-Instruct-150K.

Numbers: arXiv:2307.04087 and the README of BAAI-DCAI/Visual-Instruction-Tuning; the recipe is LLaVA-1.5's.
META.json is InternVL's kind of meta file with the source `pretrain` and those of `MIX`, each used once.
"""

from vlm_jax.models.sizes import DECODERS, TOWERS
from vlm_jax.training.systems import TINY, llava_stage, row_of, system_recipe

ARGUMENTS = {
    "13b": ("both stages with Vicuna-13B", "not timed here"),
    "tiny": ("the same parts, small, on the pocket data; for tests", "1 minute on two CPU cores"),
}

SYSTEM = {
    "number": 10,
    "name": "SVIT",
    "oracle": "`LlavaForConditionalGeneration`: logits; the core set by its properties",
    "parameters": {"13b": 13_351_494_656},
    "counted": "LLaVA-1.5-13B's",
    "missing": "",
}

DECODER = {"13b": "vicuna_13b_v1_5", TINY: "vicuna_13b_v1_5"}
MIX = ("svit_core_150k", "sharegpt", "vqav2", "gqa", "okvqa", "ocr_vqa", "a_okvqa", "textcaps", "refcoco", "vg")


def get_config(arg: str = "13b"):
    tune = dict(rows=128, learning_rate=2e-5, data=dict(order="group"))
    return system_recipe(
        arg,
        name="svit",
        vision=dict(TOWERS["clip_l14_336"], feature_layer=-2),
        connector=dict(type="mlp", depth=2),
        decoder=dict(DECODERS[row_of(DECODER, arg, __file__)], vocab_size=32064),
        layout=dict(type="single", tile_size=336, fit="pad"),
        template="vicuna_v1",
        stages=[
            llava_stage("align", ["connector/**"], dict(pretrain=1.0), rows=256, learning_rate=1e-3, template="plain"),
            llava_stage("tune", ["connector/**", "decoder/**"], dict.fromkeys(MIX, 1.0), **tune),
        ],
    )
