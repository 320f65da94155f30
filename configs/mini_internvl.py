"""Mini-InternVL: InternViT-300M and a language model of 0.5 to 4 billion parameters, on up to 12 tiles and a thumbnail.

    python -m vlm_jax.main --config=configs/mini_internvl.py:1b,align --workdir=runs/1b-align \\
        --config.start.vision=InternViT-300M-448px --config.start.decoder=Qwen2-0.5B-Instruct \\
        --config.data.train=META.json
    python -m vlm_jax.main --config=configs/mini_internvl.py:1b,tune --workdir=runs/1b-tune \\
        --config.start.model=runs/1b-align --config.data.train=META.json

Full size, published settings: first the connector is aligned, then everything tuned. Sizes, image layout and chat
template are those of the folders that it starts from, so that `1b`, `2b` and `4b` only say how to train, and any
InternVL folder may be tuned by them. META.json is InternVL's meta file.

Batches are the published ones, made for 64 GPUs and more. On fewer, set --config.stages[0].data.rows and
--config.stages[0].accumulation; a row takes 0.6 MB of host memory for each of its tile slots.
"""

from vlm_jax.errors import UserError
from vlm_jax.training.recipe import recipe_config

ARGUMENTS = {
    "1b,align": ("trains the connector, 100,000 steps of packed rows", "published for 64 GPUs, not timed here"),
    "2b,align": ("trains vision encoder and connector, one epoch", "published for 64 GPUs, not timed here"),
    "4b,align": ("trains the connector, one epoch", "published for 64 GPUs, not timed here"),
    "1b,tune": ("trains everything, 22,000 steps of packed rows", "published for 64 GPUs, not timed here"),
    "2b,tune": ("trains everything, one epoch", "published for 64 GPUs, not timed here"),
    "4b,tune": ("trains everything, one epoch", "published for 64 GPUs, not timed here"),
}

SYSTEM = {
    "number": 23,
    "name": "Mini-InternVL",
    "oracle": "`InternVLForConditionalGeneration`: logits, tiles and prompts; released folders both ways",
    "parameters": {},
    "counted": "those of the folder; the 1B is counted part by part in [architecture.md](architecture.md)",
    "missing": "",
}

# Of InternVL's scripts: `shell/internvl2.5/stage{1,2}/internvl2_5_1b_*` (1b: rows packed with conversations) and
# `shell/internvl1.5/*_{pretrain,finetune}.sh` (2b and 4b: one conversation a row).
PACKED = dict(data=dict(rows=512, tokens=16384, tiles=48), loss_reduction="square")
ALIGN_ALONE = dict(data=dict(rows=2048, tokens=4096, tiles=16, packing=False), epochs=1.0)
TUNE_ALONE = dict(data=dict(rows=1024, tokens=8192, tiles=32, packing=False), epochs=1.0)
STAGES = {
    ("1b", "align"): dict(PACKED, steps=100_000, trainable=["connector/**"], drop_path=0.0,
                          optimizer=dict(learning_rate=2e-4, weight_decay=0.01, warmup_steps=100)),
    ("2b", "align"): dict(ALIGN_ALONE, trainable=["vision/**", "connector/**"], drop_path=0.1,
                          optimizer=dict(learning_rate=2e-5, weight_decay=0.01, warmup_steps=100)),
    ("4b", "align"): dict(ALIGN_ALONE, trainable=["connector/**"], drop_path=0.0,
                          optimizer=dict(learning_rate=2e-4, weight_decay=0.05, warmup_steps=100)),
    ("1b", "tune"): dict(PACKED, steps=22_000, trainable=["**"], drop_path=0.1,
                         optimizer=dict(learning_rate=4e-5, weight_decay=0.01, warmup_ratio=0.03)),
    ("2b", "tune"): dict(TUNE_ALONE, trainable=["**"], drop_path=0.1,
                         optimizer=dict(learning_rate=4e-5, weight_decay=0.01, warmup_ratio=0.03)),
    ("4b", "tune"): dict(TUNE_ALONE, trainable=["**"], drop_path=0.1,
                         optimizer=dict(learning_rate=4e-5, weight_decay=0.05, warmup_ratio=0.03)),
}  # fmt: skip


def get_config(arg: str = "1b,tune"):
    size, _, name = arg.partition(",")
    if (size, name) not in STAGES:
        known = ", ".join(",".join(key) for key in STAGES)
        raise UserError(f"configs/mini_internvl.py:{arg}: there are {known}")
    stage = STAGES[size, name]
    # What the reference's trainer spares (transformers 4.37): biases and the scales of LayerNorms, not of RMSNorms.
    optimizer = dict(stage["optimizer"], no_decay=["**/bias", "vision/**/scale", "connector/**/scale"])
    return recipe_config(
        name=f"mini_internvl-{size}-{name}",
        system=None,
        start=dict(model="", vision="", decoder=""),
        data=dict(type="meta", train=""),
        stages=[
            {
                **stage,
                "name": name,
                "objective": dict(type="generate"),
                "data": {**stage["data"], "too_long": "truncate"},
                "optimizer": optimizer,
            }
        ],
        compute=dict(dtype="bfloat16", scan_layers=True, remat="full"),
        runtime=dict(mesh=dict(data=1, fsdp=-1), checkpoint_seconds=1800.0),
    )
