"""Parameters that stay in their files: parts of them, places on a mesh, and what is read for that."""

import json
import os
import subprocess
import sys

import numpy as np
import pytest

from tests import tiny
from vlm_jax import globs
from vlm_jax.convert.folders import open_folder, write_folder
from vlm_jax.convert.lazy import LazyArray
from vlm_jax.sharding import MeshConfig, make_mesh, place


@pytest.fixture(scope="module", params=["hf", "internvl"])
def folder(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / request.param
    write_folder(folder, tiny.params(), tiny.system(), tiny.tokenizer(), layout=request.param)
    return folder


def test_parts_are_those_of_the_whole(folder):
    wanted = globs.flatten(tiny.params())
    for path, lazy in globs.flatten(open_folder(folder).params).items():
        assert isinstance(lazy, LazyArray)
        assert (lazy.shape, lazy.dtype) == (wanted[path].shape, wanted[path].dtype)
        np.testing.assert_array_equal(np.asarray(lazy), wanted[path])
        last = tuple(slice(size // 2, None) for size in lazy.shape)
        np.testing.assert_array_equal(lazy[last], wanted[path][last])


def test_every_device_gets_its_part(folder):
    mesh = make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    placed = globs.flatten(place(open_folder(folder).params, mesh, "bfloat16"))
    split = 0
    for path, array in placed.items():
        assert array.dtype == "bfloat16"
        np.testing.assert_array_equal(np.asarray(array), globs.flatten(tiny.params())[path].astype(array.dtype))
        split += array.addressable_shards[0].data.size < array.size
    assert split > len(placed) / 2


_TWO_HOSTS = """
import json, sys
import jax
import numpy as np
rank, port, folder = int(sys.argv[1]), sys.argv[2], sys.argv[3]
jax.config.update("jax_platforms", "cpu")
jax.config.update("jax_num_cpu_devices", 2)
jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(f"localhost:{port}", 2, rank)
from vlm_jax import globs
from vlm_jax.convert import lazy
from vlm_jax.convert.folders import open_folder
from vlm_jax.sharding import MeshConfig, make_mesh, place
read = {}
original = lazy.LazyArray.__getitem__
def counted(self, index):
    part = original(self, index)
    read[id(self)] = read.get(id(self), 0) + part.size
    return part
lazy.LazyArray.__getitem__ = counted
params = open_folder(folder).params
placed = place(params, make_mesh(MeshConfig(data=1, fsdp=4, tensor=1)))
sums = jax.jit(lambda tree: {path: abs(x).sum() for path, x in tree.items()})(globs.flatten(placed))
sums = {path: float(x) for path, x in sums.items()}
total = sum(x.size for x in globs.flatten(params).values())
print(json.dumps({"sums": sums, "read": sum(read.values()), "total": total}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("folder", ["hf"], indirect=True)
def test_two_hosts_read_what_their_devices_need(folder):
    port = str(20000 + os.getpid() % 20000)
    environment = {**os.environ, "XLA_FLAGS": ""}
    hosts = [
        subprocess.Popen(
            [sys.executable, "-c", _TWO_HOSTS, str(rank), port, str(folder)],
            stdout=subprocess.PIPE,
            env=environment,
            text=True,
        )
        for rank in range(2)
    ]
    outputs = [json.loads(host.communicate(timeout=300)[0].splitlines()[-1]) for host in hosts]
    wanted = {path: float(np.abs(array).sum()) for path, array in globs.flatten(tiny.params()).items()}
    for output in outputs:
        assert output["sums"] == pytest.approx(wanted, rel=1e-4)
        # What is replicated is read twice by a host with two devices, what is split a quarter for each.
        assert output["read"] < 0.75 * output["total"]
