"""LLaVA-NeXT: a view of the whole and tiles of 336 px at any resolution, and in the second stage everything trains.

    python -m vlm_jax.main --config=configs/systems/llava_next.py:mistral_7b --workdir=runs/llava-next \\
        --config.start.vision=clip-vit-large-patch14-336 --config.start.decoder=Mistral-7B-Instruct-v0.2 \\
        --config.data.train=META.json
    python -m vlm_jax.main --config=configs/systems/llava_next.py:tiny --workdir=runs/llava-next-tiny

The tiles' tokens make one map without what only shows padding, each row of it ended by a learned vector: 576 to 2,928
visual tokens. The tower learns, too, at a tenth of the rate. Each language model has its own prompt format.

Numbers: the release notes of LLaVA-1.6 (January 2024), and LLaVA-1.5's scripts where they say nothing. META.json is
InternVL's kind of meta file with two sources, `pretrain` (558K captions) and `instruct` (the mix of 760K).
"""

from vlm_jax.models.sizes import DECODERS, TOWERS
from vlm_jax.training.systems import TINY, llava_stage, row_of, system_recipe

ARGUMENTS = {
    "vicuna_7b": ("both stages with Vicuna-7B", "published for up to 32 GPUs, not timed here"),
    "vicuna_13b": ("both stages with Vicuna-13B", "published for up to 32 GPUs, not timed here"),
    "mistral_7b": ("both stages with Mistral-7B-Instruct-v0.2", "published for up to 32 GPUs, not timed here"),
    "yi_34b": ("both stages with Nous-Hermes-2-Yi-34B", "published for up to 32 GPUs, not timed here"),
    "tiny": ("the same parts, small, on the pocket data; for tests", "1 minute on two CPU cores"),
}

SYSTEM = {
    "number": 6,
    "name": "LLaVA-NeXT",
    "oracle": "`LlavaNextForConditionalGeneration` and its image processor: logits, pixels, order of tokens",
    "parameters": {"vicuna_7b": 7_063_431_168, "vicuna_13b": 13_351_499_776, "mistral_7b": 7_566_747_648,
                   "yi_34b": 34_752_083_968},
    "counted": "as in the folders of `transformers`, whose vocabularies are filled up by 64 words",
    "missing": "",
}  # fmt: skip

# The decoder, its words with those added, the prompt formats of a conversation and of a caption.
VICUNA, MISTRAL = (32064, "vicuna_v1", "plain"), ("mistral_7b_v0_2", 32064, "mistral_instruct", "plain")
DECODER = {"vicuna_7b": ("vicuna_7b_v1_5", *VICUNA), "vicuna_13b": ("vicuna_13b_v1_5", *VICUNA), "mistral_7b": MISTRAL,
           "yi_34b": ("yi_34b", 64064, "chatml_direct", "plain_bare"), TINY: MISTRAL}  # fmt: skip


def get_config(arg: str = "vicuna_7b"):
    decoder, words, template, captions = row_of(DECODER, arg, __file__)
    align = dict(rows=256, learning_rate=1e-3, tokens=4096, tiles=5, template=captions)
    tune, slow = dict(rows=128, learning_rate=2e-5, tokens=4096, tiles=5), dict(multipliers=[("vision/**", 0.1)])
    return system_recipe(
        arg,
        name="llava-next",
        vision=dict(TOWERS["clip_l14_336"], feature_layer=-2),
        connector=dict(type="mlp", depth=2),
        decoder=dict(DECODERS[decoder], vocab_size=words),
        vectors=["newline"],
        layout=dict(type="any_res", tile_size=336),
        template=template,
        stages=[
            llava_stage("align", ["connector/**"], dict(pretrain=1.0), **align),
            llava_stage("tune", ["**"], dict(instruct=1.0), **tune, data=dict(order="group"), optimizer=slow),
        ],
    )
