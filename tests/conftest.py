"""Eight simulated devices for the sharding tests; JAX reads the flag when it starts, so it is set before any import."""

import os

os.environ["XLA_FLAGS"] = os.environ.get("XLA_FLAGS", "") + " --xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"
