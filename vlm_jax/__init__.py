"""Mini-InternVL in JAX: distil, align, tune, adapt, evaluate, serve and export pocket vision-language models.

    import vlm_jax
    model = vlm_jax.load("runs/pocket")
    model.generate("What is the total?", images=["receipt.png"])

Importing the package is cheap: JAX and the rest load when a name is first used.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_HOME = {"load": "vlm_jax.inference.model", "Model": "vlm_jax.inference.model", "UserError": "vlm_jax.errors"}

__all__ = ["Model", "UserError", "__version__", "load"]


def __getattr__(name: str) -> Any:
    if name in _HOME:
        return getattr(importlib.import_module(_HOME[name]), name)
    raise AttributeError(f"module 'vlm_jax' has no attribute '{name}'")


def __dir__() -> list[str]:
    return sorted(__all__)
