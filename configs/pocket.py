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

# Data preset and the steps of every stage, in order.
SIZES = {
    "": ("default", 150, 350, 950, 250, 80, 900),
    "quick": ("quick", 10, 10, 50, 10, 10, 30),
    "tiny": ("tiny", 2, 2, 4, 2, 2, 4),
}


def get_config(arg: str = ""):
    if arg not in SIZES:
        raise UserError(f"configs/pocket.py:{arg}: there are {', '.join(repr(name) for name in SIZES)}")
    preset, *steps = SIZES[arg]
    vision = dict(image_size=64, patch_size=8, heads=4, drop_path=0.0)
    student = dict(**vision, width=64, depth=4, mlp_width=256)
    teacher = dict(**vision, width=96, depth=4, mlp_width=384)
    decoder = dict(
        vocab_size=1056,
        width=96,
        depth=3,
        heads=4,
        kv_heads=2,
        head_dim=24,
        mlp_width=256,
        rope_theta=1e4,
        max_tokens=2048,
    )
    if arg == "tiny":
        small = dict(width=24, mlp_width=48)
        student, teacher = {**student, **small, "depth": 2}, {**teacher, **small, "depth": 3}
        decoder = {**decoder, **small, "depth": 2, "head_dim": 8}

    # What a digit looks like, then where to look for it, then everything: each step is learned in a fraction of the
    # time that it takes without the one before.
    look = {"digits-1": 1.0, "photo": 0.7}
    find = {"digits-1": 0.2, "digits-2": 1.0, "photo": 0.2, "point": 0.2}
    read = dict(digits=2.0, count=0.6, document=0.5, chart=0.5, point=0.5, photo=0.3)
    everything = dict(digits=1.2, count=1.0, document=1.0, chart=1.0, point=1.0, photo=0.5)
    optimizer = dict(type="muon", learning_rate=5e-3, warmup_ratio=0.05, b2=0.98, weight_decay=0.02, final_ratio=0.1)

    def stage(name, steps, objective, trainable, weights, rows=8, **changes):
        data = dict(rows=rows, tokens=384, tiles=8, weights=weights)
        return dict(name=name, steps=steps, objective=objective, trainable=trainable, data=data,
                    loss_reduction="square", optimizer={**optimizer, **changes})  # fmt: skip

    def teach(name, steps, weights, **changes):
        return stage(
            name, steps, dict(type="generate", model="teacher"), ["teacher/**", "decoder/**"], weights, **changes
        )

    return recipe_config(
        name="pocket" + (f":{arg}" if arg else ""),
        system=dict(
            model=dict(vision=student, connector=dict(), decoder=decoder),
            layout=dict(tile_size=64, max_tiles=6),
        ),
        teacher=dict(vision=teacher, connector=dict()),
        tokenizer_size=1024,
        data=dict(type="pocket", preset=preset),
        stages=[
            teach("look", steps[0], look, rows=4, schedule="constant"),
            teach("find", steps[1], find, rows=4, schedule="constant", warmup_ratio=0.0),
            teach("teacher", steps[2], read),
            stage("distill", steps[3], dict(type="distill", layers=2), ["vision/**", "distillation/**"], everything),
            stage("align", steps[4], dict(type="generate"), ["connector/**"], everything),
            stage("tune", steps[5], dict(type="generate"), ["**"], everything, learning_rate=3e-3),
        ],
        evaluation=dict(limit=4 if arg == "tiny" else 0),
    )
