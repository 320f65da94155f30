"""Pocket Mini-InternVL on two CPU cores: teacher, distil, align, tune, evaluate, report, export (about 20 minutes).

    python -m vlm_jax.main --config=configs/pocket.py --workdir=runs/pocket          the whole road
    python -m vlm_jax.main --config=configs/pocket.py:quick --workdir=runs/quick     the same road, under 2 minutes
    python -m vlm_jax.main --config=configs/pocket.py:tiny --workdir=runs/tiny       seconds; for tests

The architecture is Mini-InternVL's, only small: tiles of 64 px in patches of 8, so 16 visual tokens a tile, up to six
tiles and a thumbnail. The teacher is a larger encoder trained with the decoder on the generative task; that decoder is
the pocket model's pre-trained language model.
"""

from vlm_jax.errors import UserError
from vlm_jax.training.recipe import recipe_config

SIZES = {
    # steps of the four stages, data preset
    "": ((1200, 250, 100, 600), "default"),
    "quick": ((60, 10, 10, 30), "quick"),
    "tiny": ((4, 2, 2, 4), "tiny"),
}


def get_config(arg: str = ""):
    if arg not in SIZES:
        raise UserError(f"configs/pocket.py:{arg}: there are {', '.join(repr(name) for name in SIZES)}")
    steps, preset = SIZES[arg]
    small = arg == "tiny"
    width, depth = (64, 2) if small else (128, 4)
    vision = dict(image_size=64, patch_size=8, norm_eps=1e-6, drop_path=0.0)
    decoder = dict(vocab_size=1056, width=width, depth=depth, heads=4, kv_heads=2, head_dim=width // 4, mlp_width=3 * width)
    data = dict(rows=16, tokens=320, tiles=8)
    new = dict(learning_rate=2e-3, warmup_ratio=0.05, b2=0.98, weight_decay=0.05, final_ratio=0.05)

    def stage(name, objective, trainable, steps, **optimizer):
        return dict(name=name, objective=objective, trainable=trainable, steps=steps, data=data,
                    optimizer={**new, **optimizer})  # fmt: skip

    return recipe_config(
        name="pocket" + (f":{arg}" if arg else ""),
        system=dict(
            model=dict(
                vision=dict(**vision, width=96 if not small else 32, depth=4 if not small else 2, heads=4, mlp_width=384 if not small else 64),
                connector=dict(),
                decoder=decoder,
            ),
            layout=dict(tile_size=64, max_tiles=6),
        ),
        teacher=dict(
            vision=dict(**vision, width=width, depth=6 if not small else 3, heads=4, mlp_width=4 * width),
            connector=dict(),
        ),
        tokenizer_size=1024,
        data=dict(type="pocket", preset=preset),
        stages=[
            stage("teacher", dict(type="generate", model="teacher"), ["teacher/**", "decoder/**"], steps[0]),
            stage("distill", dict(type="distill", layers=2), ["vision/**", "distillation/**"], steps[1]),
            stage("align", dict(type="generate"), ["connector/**"], steps[2]),
            stage("tune", dict(type="generate"), ["**"], steps[3], learning_rate=1e-3),
        ],
        evaluation=dict(limit=4 if small else 0),
    )
