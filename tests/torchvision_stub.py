"""Lets torchvision be imported beside a PyTorch that it was not built for.

`AutoProcessor` wants torchvision, whose wheel on PyPI needs libraries of CUDA, but only for its own operators. Where
they do not load (beside a CPU build of PyTorch), their names are declared without any code behind them: all that
transforms of images need is plain PyTorch.
"""

import importlib.abc
import importlib.machinery
import re
import sys
from pathlib import Path


class _Declare(importlib.abc.MetaPathFinder):
    """Declares the operators just before anybody imports torchvision; finds nothing itself."""

    library = None

    def find_spec(self, fullname, path=None, target=None):
        if fullname == "torchvision" and self.library is None:
            spec = importlib.machinery.PathFinder.find_spec(fullname)
            if spec is not None and spec.submodule_search_locations:
                self.library = _declare(Path(spec.submodule_search_locations[0]))


def install() -> None:
    """Makes later imports of torchvision work; does nothing where it is not installed."""
    sys.meta_path.insert(0, _Declare())


def _declare(folder):
    """A `torch.library.Library`, whose declarations end with it, or False where torchvision's own operators load."""
    import torch

    try:
        for file in folder.glob("_C*.so"):
            torch.ops.load_library(file)
    except OSError:
        library = torch.library.Library("torchvision", "DEF")
        registrations = (folder / "_meta_registrations.py").read_text()
        for name in set(re.findall(r'register_(?:meta|fake)\("(?:torchvision::)?(\w+)"', registrations)):
            library.define(f"{name}(Tensor x) -> Tensor")
        return library
    return False
