"""Yi-VL: a ViT that trains in every stage, from 224 to 448 px on the way, and a connector with LayerNorms.

    python -m vlm_jax.main --config=configs/systems/yi_vl.py:6b --workdir=runs/yi-vl \\
        --config.start.vision=CLIP-ViT-H-14-laion2B-s32B-b79K --config.start.decoder=Yi-6B-Chat \\
        --config.data.train=META.json
    python -m vlm_jax.main --config=configs/systems/yi_vl.py:tiny --workdir=runs/yi-vl-tiny

OpenCLIP-H/14 sees a padded square, 256 visual tokens in the first stage, 1,024 after it, its positions interpolated;
behind both linear layers of the connector stands a LayerNorm. The last stage trains everything on at most 50,000
records of each source.

Numbers: the model card of 01-ai/Yi-VL-6B (parts, data and rates of the stages), `VL/` of 01-ai/Yi (projector, prompt,
optimizer), arXiv:2403.04652 section 7. META.json is InternVL's kind of meta file with the sources of `STAGES`.
"""

from vlm_jax.models.sizes import DECODERS, TOWERS
from vlm_jax.training.systems import TINY, llava_stage, row_of, system_recipe

ARGUMENTS = {
    "6b": ("three stages with Yi-6B-Chat", "published for 128 GPUs and 3 days, not timed here"),
    "34b": ("three stages with Yi-34B-Chat", "published for 128 GPUs and 10 days, not timed here"),
    "tiny": ("the same parts, small, on the pocket data; for tests", "1 minute on two CPU cores"),
}

SYSTEM = {
    "number": 20,
    "name": "Yi-VL",
    "oracle": "towers and decoders against their classes in `transformers`, the connector against PyTorch's layers",
    "parameters": {"6b": 6_715_353_600, "34b": 35_082_182_144},
    "counted": "Yi's release with 64 words more, OpenCLIP-H/14's tower at 448 px, and the connector",
    "missing": "",
}

DECODER = {"6b": "yi_6b", "34b": "yi_34b", TINY: "yi_6b"}
PAIRS, MIX = ("laion",), ("laion", "cllava", "llavar", "flickr", "vqav2", "refcoco", "visual7w")
TASKS = ("gqa", "vizwiz", "textcaps", "ocr_vqa", "vg", "laion_gpt4v")
SEES, ALL, CAP = ["vision/**", "connector/**"], ["**"], dict(cap=50_000)
STAGES = [  # name, what trains, sources, batch, rate, epochs, px, limit of the gradient's norm, data
    ("align", SEES, PAIRS, 4096, 1e-4, 1.0, 224, 0.5, {}),
    ("widen", SEES, MIX, 4096, 1e-4, 1.0, 448, 0.5, {}),
    ("tune", ALL, TASKS, 256, 2e-5, 2.0, 448, 1.0, CAP),
]


def get_config(arg: str = "6b"):
    return system_recipe(
        arg,
        name="yi-vl",
        vision=dict(TOWERS["openclip_h14_224"], image_size=448, feature_layer=-2),
        connector=dict(type="mlp", depth=2, norm=True),
        decoder=dict(DECODERS[row_of(DECODER, arg, __file__)], vocab_size=64064),
        layout=dict(type="single", tile_size=448, fit="pad"),
        template="yi_vl",
        stages=[
            llava_stage(name, trainable, dict.fromkeys(sources, 1.0), rows=rows, learning_rate=rate, epochs=epochs,
                        image_size=side, data=data, optimizer=dict(clip_norm=clip))
            for name, trainable, sources, rows, rate, epochs, side, clip, data in STAGES
        ],
    )  # fmt: skip
