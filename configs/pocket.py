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

# Data preset and the steps of teacher, distil, align and tune.
SIZES = {
    "": ("default", 1300, 250, 80, 1000),
    "quick": ("quick", 60, 10, 10, 30),
    "tiny": ("tiny", 4, 2, 2, 4),
}


def get_config(arg: str = ""):
    if arg not in SIZES:
        raise UserError(f"configs/pocket.py:{arg}: there are {', '.join(repr(name) for name in SIZES)}")
    preset, *steps = SIZES[arg]
    vision = dict(image_size=64, patch_size=8, heads=4, drop_path=0.0)
    student = dict(**vision, width=64, depth=4, mlp_width=256)
    teacher = dict(**vision, width=96, depth=4, mlp_width=384)
    decoder = dict(
        vocab_size=1056, width=96, depth=3, heads=4, kv_heads=2, head_dim=24, mlp_width=256, rope_theta=1e4, max_tokens=2048
    )
    if arg == "tiny":
        small = dict(width=24, mlp_width=48)
        student, teacher = {**student, **small, "depth": 2}, {**teacher, **small, "depth": 3}
        decoder = {**decoder, **small, "depth": 2, "head_dim": 8}

    # Reading digits is learned slowly and everything else builds on it, so the teacher sees them more often.
    seen = dict(digits=2.0, count=1.0, document=0.6, chart=0.6, point=0.6, photo=0.4)
    later = dict(digits=1.5, count=1.0, document=1.0, chart=1.0, point=1.0, photo=0.5)
    optimizer = dict(type="muon", learning_rate=4e-3, warmup_ratio=0.04, b2=0.98, weight_decay=0.02, final_ratio=0.05)

    def stage(name, steps, objective, trainable, weights, **changes):
        data = dict(rows=8, tokens=384, tiles=8, weights=weights)
        return dict(name=name, steps=steps, objective=objective, trainable=trainable, data=data,
                    optimizer={**optimizer, **changes})  # fmt: skip

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
            stage("teacher", steps[0], dict(type="generate", model="teacher"), ["teacher/**", "decoder/**"], seen),
            stage("distill", steps[1], dict(type="distill", layers=2), ["vision/**", "distillation/**"], later),
            stage("align", steps[2], dict(type="generate"), ["connector/**"], later),
            stage("tune", steps[3], dict(type="generate"), ["**"], later, learning_rate=2e-3),
        ],
        evaluation=dict(limit=4 if arg == "tiny" else 0),
    )
