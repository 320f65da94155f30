"""Set before anything imports JAX: eight simulated devices, and one cache of compilations for all test processes."""

import atexit
import os
import shutil
import tempfile
from pathlib import Path

import hypothesis

from tests import torchvision_stub

# Most of the time of the tests is compiling, which takes half as long without LLVM's optimisations.
QUICK_COMPILE = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"

os.environ["XLA_FLAGS"] = " ".join(
    [os.environ.get("XLA_FLAGS", ""), QUICK_COMPILE, "--xla_force_host_platform_device_count=8"]
)
os.environ["JAX_PLATFORMS"] = "cpu"
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.2")

torchvision_stub.install()

# A busy machine is no mistake.
hypothesis.settings.register_profile("vlm_jax", deadline=None, suppress_health_check=[hypothesis.HealthCheck.too_slow])
hypothesis.settings.load_profile("vlm_jax")

_PREFIX = "vlm_jax-tests-"


def _remove_left_behind() -> None:
    """Caches of test runs that were killed."""
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        if not Path(f"/proc/{folder.name.split('-')[2]}").exists():
            shutil.rmtree(folder, ignore_errors=True)


if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):  # the processes of pytest-xdist find it set
    _remove_left_behind()
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-")
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


def pytest_addoption(parser) -> None:
    parser.addoption("--full-size", action="store_true", help="run the tests of models at full size (half an hour)")
