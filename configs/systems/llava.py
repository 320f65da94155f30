"""LLaVA: one linear layer between CLIP-L/14 at 224 px and Vicuna, and conversations that GPT-4 wrote.

    python -m vlm_jax.main --config=configs/systems/llava.py:13b --workdir=runs/llava \\
        --config.start.vision=clip-vit-large-patch14 --config.start.decoder=vicuna-13b-v1.3 \\
        --config.data.train=META.json
    python -m vlm_jax.main --config=configs/systems/llava.py:tiny --workdir=runs/llava-tiny

Of an image the middle square is seen, as 256 visual tokens from the tower's last layer but one. The first stage trains
the linear layer on captions with no prompt, the second that and the language model on conversations.

Numbers: arXiv:2304.08485, section 4 (batches, epochs), and `scripts/{pretrain,finetune_full_schedule}.sh` of
haotian-liu/LLaVA (rates, schedule, lengths). META.json is InternVL's kind of meta file with two sources, `pretrain`
(CC3M's 595K captions) and `instruct` (158K conversations).
"""

from vlm_jax.models.sizes import DECODERS, TOWERS
from vlm_jax.training.systems import TINY, llava_stage, row_of, system_recipe

ARGUMENTS = {
    "7b": ("both stages with Vicuna-7B", "published for 8 GPUs, not timed here"),
    "13b": ("both stages with Vicuna-13B", "published for 8 GPUs, not timed here"),
    "tiny": ("the same parts, small, on the pocket data; for tests", "1 minute on two CPU cores"),
}

SYSTEM = {
    "number": 4,
    "name": "LLaVA",
    "oracle": "towers and decoders against their classes in `transformers`, composed; prompts against LLaVA's own code",
    "parameters": {"7b": 7_046_318_080, "13b": 13_324_947_456},
    "counted": "Vicuna's release with its 32,000 words filled up to 32,064, CLIP-L/14 and 1024 → D with biases",
    "missing": "",
}

DECODER = {"7b": "vicuna_7b", "13b": "vicuna_13b", TINY: "vicuna_7b"}


def get_config(arg: str = "13b"):
    return system_recipe(
        arg,
        name="llava",
        vision=dict(TOWERS["clip_l14_224"], feature_layer=-2),
        connector=dict(type="mlp", depth=1),
        decoder=dict(DECODERS[row_of(DECODER, arg, __file__)], vocab_size=32064),
        layout=dict(type="single", tile_size=224, fit="crop"),
        template="vicuna_v1",
        stages=[
            llava_stage("align", ["connector/**"], dict(pretrain=1.0), rows=128, learning_rate=2e-3, template="plain"),
            llava_stage(
                "tune", ["connector/**", "decoder/**"], dict(instruct=1.0), rows=32, learning_rate=2e-5, epochs=3.0
            ),
        ],
    )
