"""LLaVAR: LLaVA that reads, by 422K pictures with their text in the first stage and 16K conversations in the second.

    python -m vlm_jax.main --config=configs/systems/llavar.py:336 --workdir=runs/llavar \\
        --config.start.vision=clip-vit-large-patch14-336 --config.start.decoder=vicuna-13b-v1.1 \\
        --config.data.train=META.json
    python -m vlm_jax.main --config=configs/systems/llavar.py:tiny --workdir=runs/llavar-tiny

The model is LLaVA's with Vicuna-13B, at 336 px or, as an ablation, 224; but an image is padded to a square, not cut,
because text stands at margins too. What is its own is the data, conversations made of what OCR found.

Numbers: arXiv:2306.17107, sections 3 to 5. META.json is InternVL's kind of meta file with four sources: `cc3m` (595K
captions) and `ocr` (the noisy 422K) of the first stage, `instruct` (158K) and `text_rich` (16K by GPT-4) of the second.
The release's learned tokens before and behind an image are vectors that train with the connector.
"""

from vlm_jax.models.sizes import DECODERS, TOWERS
from vlm_jax.training.systems import TINY, llava_stage, row_of, system_recipe

ARGUMENTS = {
    "224": ("both stages at 224 px", "not timed here"),
    "336": ("both stages at 336 px", "not timed here"),
    "tiny": ("the same parts, small, on the pocket data; for tests", "1 minute on two CPU cores"),
}

SYSTEM = {
    "number": 9,
    "name": "LLaVAR",
    "oracle": "as LLaVA's; OCR to conversation by its properties",
    "parameters": {"224": 13_324_957_696, "336": 13_325_285_376},
    "counted": "Vicuna's release with 32,064 words for its 32,000, CLIP-L/14, 1024 → 5120 with biases, two vectors",
    "missing": "",
}

SIDE = {"224": 224, "336": 336, TINY: 336}


def get_config(arg: str = "336"):
    side = row_of(SIDE, arg, __file__)
    align = dict(rows=128, learning_rate=2e-3, tokens=1024, template="plain")
    tune = dict(rows=32, learning_rate=2e-5, epochs=3.0)
    return system_recipe(
        arg,
        name="llavar",
        vision=dict(TOWERS[f"clip_l14_{side}"], feature_layer=-2),
        connector=dict(type="mlp", depth=1),
        decoder=dict(DECODERS["vicuna_13b"], vocab_size=32064),
        layout=dict(type="single", tile_size=side, fit="pad", wrapped=True),
        vectors=["begin", "end"],
        template="vicuna_v1",
        stages=[
            llava_stage("align", ["connector/**"], dict(cc3m=1.0, ocr=1.0), **align),
            llava_stage("tune", ["connector/**", "decoder/**"], dict(instruct=1.0, text_rich=1.0), **tune),
        ],
    )
