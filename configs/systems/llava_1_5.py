"""LLaVA-1.5: CLIP-L/14 at 336 px on an image padded to a square, two linear layers, Vicuna v1.5.

    python -m vlm_jax.main --config=configs/systems/llava_1_5.py:7b --workdir=runs/llava-1.5 \\
        --config.start.vision=clip-vit-large-patch14-336 --config.start.decoder=vicuna-7b-v1.5 \\
        --config.data.train=META.json
    python -m vlm_jax.main --config=configs/systems/llava_1_5.py:tiny --workdir=runs/llava-1.5-tiny

Over LLaVA it has more pixels (576 visual tokens), a GELU and a second layer in the connector, the whole image (the
margins have the tower's mean colour), and academic questions that say in which form to answer. Batches of the second
stage hold images or none, and conversations of like length.

Numbers: arXiv:2310.03744 and its table of hyperparameters; `scripts/v1_5/{pretrain,finetune}.sh` of haotian-liu/LLaVA.
META.json is InternVL's kind of meta file with two sources, `pretrain` (558K captions) and `instruct` (the mix of 665K).
"""

from vlm_jax.models.sizes import DECODERS, TOWERS
from vlm_jax.training.systems import TINY, llava_stage, row_of, system_recipe

ARGUMENTS = {
    "7b": ("both stages with Vicuna-7B", "published for 8 GPUs, not timed here"),
    "13b": ("both stages with Vicuna-13B", "published for 8 GPUs, not timed here"),
    "tiny": ("the same parts, small, on the pocket data; for tests", "1 minute on two CPU cores"),
}

SYSTEM = {
    "number": 5,
    "name": "LLaVA-1.5",
    "oracle": "`LlavaForConditionalGeneration`: logits",
    "parameters": {"7b": 7_063_427_072, "13b": 13_351_494_656},
    "counted": "as in the folders of `transformers`, whose vocabulary is filled up to 32,064 words",
    "missing": "",
}

DECODER = {"7b": "vicuna_7b_v1_5", "13b": "vicuna_13b_v1_5", TINY: "vicuna_7b_v1_5"}


def get_config(arg: str = "7b"):
    tune = dict(rows=128, learning_rate=2e-5, data=dict(order="group"))
    return system_recipe(
        arg,
        name="llava-1.5",
        vision=dict(TOWERS["clip_l14_336"], feature_layer=-2),
        connector=dict(type="mlp", depth=2),
        decoder=dict(DECODERS[row_of(DECODER, arg, __file__)], vocab_size=32064),
        layout=dict(type="single", tile_size=336, fit="pad"),
        template="vicuna_v1",
        stages=[
            llava_stage("align", ["connector/**"], dict(pretrain=1.0), rows=256, learning_rate=1e-3, template="plain"),
            llava_stage("tune", ["connector/**", "decoder/**"], dict(instruct=1.0), **tune),
        ],
    )
