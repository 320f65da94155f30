"""The pocket data set: six tasks drawn from real material that comes with ordinary packages.

`material` divides the raw material between the splits; `digits`, `documents`, `charts`, `points` and `photos` draw;
`records` makes conversations; `presets` says how many; `builder` writes them with TFDS; `prepare` does so once, in
parallel and kill-proof.
`python -m vlm_jax.data.pocket --out=DIR` draws contact sheets to look at.
"""

from vlm_jax.data.pocket.prepare import prepare_pocket
from vlm_jax.data.pocket.presets import PRESETS

__all__ = ["PRESETS", "prepare_pocket"]
