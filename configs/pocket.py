"""Pocket Mini-InternVL on two CPU cores: teacher, distil, align, tune, evaluate, report, export.

    python -m vlm_jax.main --config=configs/pocket.py --workdir=runs/pocket          the whole road
    python -m vlm_jax.main --config=configs/pocket.py:full --workdir=runs/full       the same road, as far as it goes
    python -m vlm_jax.main --config=configs/pocket.py:quick --workdir=runs/quick     the same road, a few steps each
    python -m vlm_jax.main --config=configs/pocket.py:tiny --workdir=runs/tiny       the same, smaller; for tests

The architecture is Mini-InternVL's, only small: tiles of 64 px in patches of 8, so 16 visual tokens a tile, up to six
tiles and a thumbnail. The teacher is a larger encoder trained with the decoder on the generative task; that decoder is
the pocket model's pre-trained language model.
"""

from vlm_jax.errors import UserError
from vlm_jax.training.recipe import recipe_config

ARGUMENTS = {
    "": ("the whole road", "20 minutes on two CPU cores"),
    "full": ("the same road, wider models, more data: examples/pocket", "2 hours on two CPU cores"),
    "quick": ("the same road, a few steps each, with poor scores", "2 minutes on two CPU cores"),
    "tiny": ("the same, smaller; for tests", "2 minutes on two CPU cores"),
}

# Data preset and the steps of every stage, in order; a stage of none is left out.
SIZES = {
    "": ("default", 240, 540, 0, 900, 160, 60, 1500),
    "full": ("large", 300, 700, 2000, 1200, 400, 80, 9000),
    "quick": ("quick", 4, 4, 0, 6, 4, 4, 10),
    "tiny": ("tiny", 2, 2, 0, 2, 2, 2, 4),
}


def get_config(arg: str = ""):
    if arg not in SIZES:
        raise UserError(f"configs/pocket.py:{arg}: there are {', '.join(repr(name) for name in SIZES)}")
    preset, *steps = SIZES[arg]
    vision = dict(image_size=64, patch_size=8, heads=4, drop_path=0.0, position_waves=0.3)
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
        rope_theta=100.0,
        max_tokens=2048,
    )
    optimizer = dict(
        type="muon",
        learning_rate=5e-3,
        warmup_ratio=0.05,
        momentum=0.8,  # at the usual 0.95 the first stage gets as far as this in twice the steps
        b2=0.98,
        weight_decay=0.02,
        final_ratio=0.02,
    )
    if arg == "full":
        student, teacher = {**student, "width": 96, "mlp_width": 384}, {**teacher, "width": 128, "mlp_width": 512}
        decoder.update(width=128, depth=4, head_dim=32, mlp_width=384)
    if arg == "quick":  # half of its time would go into compiling four layers
        student, teacher, decoder = ({**part, "depth": 2} for part in (student, teacher, decoder))
    if arg == "tiny":
        optimizer["type"] = "adamw"  # compiles faster
        small = dict(width=24, mlp_width=48)
        student, teacher = {**student, **small, "depth": 2}, {**teacher, **small, "depth": 3}
        decoder = {**decoder, **small, "depth": 2, "head_dim": 8}

    # Reading one kind of grid comes first, then finding a row, a column, a cell of it, then all else in one tile: there
    # the model learns where to look, which is hard to learn among everything and easy to carry over. A picture is
    # encoded once for all that is asked about it. Rows are short: attention to what a row packs besides is time lost.
    lessons = dict(finding=0.4, looking=1.0)
    everything = dict(
        digits=1.5, finding=0.6, looking=0.4, count=0.8, document=1.3, chart=1.0, point=0.9, photo=0.8
    )  # fmt: skip
    # Searching a grid for a digit and adding two of them up is not learned among everything at all, and takes more than
    # a thousand steps by itself; in twenty minutes those steps are missing elsewhere.
    if arg == "full":
        lessons.update(finding=0.2, searching=0.4)
        everything.update(digits=0.8, finding=0.2, searching=0.4, count=1.2, point=1.4, photo=1.0)

    look = dict(rows=8, tokens=256, tiles=2, parts=1)
    # A picture a row.
    read, find, search = ({**look, **dict(rows=16, tokens=tokens, tiles=1)} for tokens in (56, 160, 200))
    if arg in ("quick", "tiny"):
        read = find = search = look  # stages of one shape share a compilation

    def stage(name, steps, objective, trainable, weights=everything, rows=8, tokens=384, tiles=7, parts=2, **changes):
        return dict(
            name=name,
            steps=steps,
            objective=objective,
            trainable=trainable,
            data=dict(rows=rows, tokens=tokens, tiles=tiles, weights=weights),
            loss_reduction="square",
            accumulation=parts,
            optimizer={**optimizer, **changes},
        )

    def teach(name, steps, weights, **changes):
        objective = dict(type="generate", model="teacher")
        return stage(name, steps, objective, ["teacher/**", "decoder/**"], weights, **changes)

    stages = [
        teach("read", steps[0], dict(reading=1.0), **read, schedule="constant"),
        teach("find", steps[1], dict(finding=1.0), **find, schedule="constant"),
        teach("search", steps[2], dict(searching=1.0), **search, schedule="constant"),
        teach("teacher", steps[3], lessons, **look),
        stage("distill", steps[4], dict(type="distill", layers=2), ["vision/**", "distillation/**"]),
        stage("align", steps[5], dict(type="generate"), ["connector/**"], learning_rate=1e-3),
        stage("tune", steps[6], dict(type="generate"), ["**"], learning_rate=4e-3),
    ]
    return recipe_config(
        name="pocket" + (f":{arg}" if arg else ""),
        system=dict(
            model=dict(vision=student, connector=dict(), decoder=decoder),
            layout=dict(tile_size=64, max_tiles=6),
        ),
        teacher=dict(vision=teacher, connector=dict()),
        tokenizer_size=1024,
        data=dict(type="pocket", preset=preset),
        stages=[stage for stage in stages if stage["steps"]],
        evaluation=dict(
            limit={"tiny": 4, "quick": 12}.get(arg, 0),
            controls=("blank", "shuffled", "wrong") if arg == "full" else ("blank",),
            watch=2 if arg == "tiny" else 8,
            watch_steps=800 if arg == "full" else 0,
        ),
        runtime=dict(cpu_devices=2),
    )
