"""OtterHD: Fuyu-8B tuned on instructions; no vision encoder, an image at its own size is patches in the decoder.

    python -m vlm_jax.main --config=configs/systems/otterhd.py:8b --workdir=runs/otterhd \\
        --config.start.model=fuyu-8b --config.data.train=META.json
    python -m vlm_jax.main --config=configs/systems/otterhd.py:tiny --workdir=runs/otterhd-tiny

Every patch of 30 px goes through one linear layer, a token of the vocabulary ends each row, and positions are those of
the sequence alone. In training every conversation's images are stretched to a square whose side is drawn; in use they
keep their size, or shrink to 1920 x 1080 px. One stage trains everything.

Numbers: arXiv:2311.04219 and the command in Luodian/Otter's page on OtterHD (8 GPUs of 8 conversations, accumulated
twice). META.json is InternVL's kind of meta file with the source `instruct` (370K, ten sets in the paper).
"""

from vlm_jax.models.sizes import DECODERS
from vlm_jax.training.systems import TINY, llava_stage, row_of, system_recipe

ARGUMENTS = {
    "8b": ("tunes Fuyu-8B", "published for 8 GPUs, not timed here"),
    "tiny": ("the same parts, small, on the pocket data; for tests", "1 minute on two CPU cores"),
}

SYSTEM = {
    "number": 15,
    "name": "OtterHD",
    "oracle": "`FuyuForCausalLM` and its image processor: logits, pixels, order of tokens",
    "parameters": {"8b": 9_408_238_592},
    "counted": "as in adept/fuyu-8b",
    "missing": "",
}

# 26 columns and rows of patches at 768 px: 11 slots of 64. The small variant's conversations may have several pictures.
TILES = {"8b": 11, TINY: 36}


def get_config(arg: str = "8b"):
    tune = dict(rows=128, learning_rate=1e-5, epochs=3.0, tokens=4096, tiles=row_of(TILES, arg, __file__))
    return system_recipe(
        arg,
        name="otterhd",
        vision=dict(type="patch_projection", patch_size=30, width=4096, patches=64),
        connector=dict(type="identity"),
        decoder=DECODERS["persimmon_8b"],
        layout=dict(
            type="native_raster", patch_size=30, max_width=1920, max_height=1080, slot=64, sides=(448, 512, 768)
        ),
        template="fuyu",
        stages=[
            llava_stage(
                "tune",
                ["**"],
                dict(instruct=1.0),
                **tune,
                optimizer=dict(weight_decay=0.1, warmup_ratio=0.01, schedule="linear"),
            ),
        ],
    )
