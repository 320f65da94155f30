"""Your own pictures and questions: tunes any model folder on data of any kind. docs/data.md is the tutorial.

    python -m vlm_jax.main --config=configs/tune.py --workdir=runs/mine \\
        --config.start.model=runs/pocket --config.data.train=train.jsonl --config.data.test=test.jsonl
    python -m vlm_jax.main --config=configs/tune.py:connector ...   # only what joins pictures and language is trained

The model is the folder's: of a run, or of any InternVL release. How long a row is and how many tiles it takes is chosen
from the data; --config.stages[0].data.rows says how many rows a step has, --config.stages[0].epochs how often the data
is gone through. Small models, made for small pictures, learn faster: --config.stages[0].optimizer.learning_rate=1e-3.
"""

from vlm_jax.errors import UserError
from vlm_jax.training.recipe import recipe_config

ARGUMENTS = {
    "all": ("trains the whole model", "4 minutes on two CPU cores for the pocket model and the data of docs/data.md"),
    "connector": ("trains only what joins pictures and language", "less than for all"),
    "decoder": ("trains the language model and what joins it to pictures", "less than for all"),
}

TRAINABLE = {"all": ["**"], "connector": ["connector/**"], "decoder": ["connector/**", "decoder/**"]}


def get_config(arg: str = "all"):
    if arg not in TRAINABLE:
        raise UserError(f"configs/tune.py:{arg}: there are {', '.join(TRAINABLE)}")
    return recipe_config(
        name=f"tune-{arg}",
        system=None,
        start=dict(model="", vision="", decoder=""),
        data=dict(type="meta", train="", validation="", test=""),
        stages=[
            dict(
                name="tune",
                objective=dict(type="generate"),
                trainable=TRAINABLE[arg],
                epochs=3.0,
                # Long answers would else drown short ones (InternVL's domain adaptation weighs so).
                loss_reduction="square",
                data=dict(rows=4, too_long="truncate"),
                optimizer=dict(
                    learning_rate=4e-5, weight_decay=0.01, warmup_ratio=0.03, no_decay=["**/bias", "**/scale"]
                ),
            )
        ],
        evaluation=dict(split="test", max_new_tokens=64, batch_size=8),
        compute=dict(dtype="float32"),
    )
