"""Parameters go from their file onto a mesh one by one, in the type that is asked for."""

import resource
import runpy
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

import vitswin_jax
from vitswin_jax.core.types import UserError
from vitswin_jax.nn.scan import stack_blocks
from vitswin_jax.train.sharding import create_mesh
from vitswin_jax.train.state import state_layout
from vitswin_jax.weights.formats.tensors import Tensor
from vitswin_jax.weights.open import open_pretrained
from vitswin_jax.weights.place import read_onto, read_parameters

LARGE = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "load_large.py"))
WIDTH, DEPTH = 128, 3  # heads of 4 channels


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """DINOv3's keys, in bfloat16 and in shards."""
    path = tmp_path_factory.mktemp("dinov3")
    LARGE["write_stand_in"](path, WIDTH, DEPTH)
    return path


def flat_of(variables):
    return flatten_dict(variables["params"], sep="/")


def assert_equal(found, wanted):
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        np.testing.assert_array_equal(np.asarray(found[name]), np.asarray(array), err_msg=name)


@pytest.mark.parametrize("scan", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_on_a_mesh_they_are_those_of_one_device(folder, scan, dtype):
    mesh = create_mesh(data=2, fsdp=2, tensor=2)
    model, variables = vitswin_jax.load_pretrained(folder, mesh=mesh, param_dtype=dtype, scan=scan)
    whole = vitswin_jax.load_pretrained(folder)[1]["params"]
    found = flat_of(variables)
    assert {leaf.dtype.name for leaf in found.values()} == {dtype}
    # The file's numbers are bfloat16, and so is nothing lost.
    wanted = flatten_dict(stack_blocks(whole) if scan else whole, sep="/")
    assert_equal({name: leaf.astype(np.float32) for name, leaf in found.items()}, wanted)
    layout = state_layout(model, _no_optimizer(), image_shape=(224, 224, 3), mesh=mesh)
    trained = {name: leaf.sharding for name, leaf in flat_of({"params": layout.params}).items()}
    for name, leaf in found.items():
        assert leaf.sharding.is_equivalent_to(trained[name], leaf.ndim), name


def _no_optimizer():
    import optax

    return optax.identity()


def test_a_device_is_given_its_part_alone(folder):
    mesh = create_mesh(data=1, fsdp=8)
    variables = vitswin_jax.load_pretrained(folder, mesh=mesh)[1]
    kernel = variables["params"]["block_0"]["mlp"]["fc1"]["kernel"]
    assert kernel.shape == (WIDTH, 4 * WIDTH)
    assert {shard.data.shape for shard in kernel.addressable_shards} == {(WIDTH // 8, 4 * WIDTH)}


def test_one_array_is_on_its_way_to_a_mesh():
    """Reading the next one waits until the last is on its devices."""
    on_their_way, most, lock = [], [], threading.Lock()

    def tensor(i):
        def fill(array):
            with lock:
                on_their_way.append(i)
                most.append(len(on_their_way))
            array[...] = i
            time.sleep(0.02)
            with lock:
                on_their_way.remove(i)

        return Tensor((8, 8), np.dtype(np.float32), lambda: pytest.fail("is read whole"), fill=fill)

    names = [f"block_{i}/mlp/fc1/kernel" for i in range(6)]
    tensors = {name: tensor(i) for i, name in enumerate(names)}
    found = flatten_dict(read_onto(tensors, create_mesh(data=1, fsdp=8)), sep="/")
    assert most == [1] * 6
    assert [float(found[name][0, 0]) for name in names] == list(range(6))
    assert flatten_dict(read_parameters(tensors), sep="/").keys() == set(names)


def test_forty_blocks_are_planned_by_their_shapes(tmp_path):
    """The 7B's own widths, 13 GB of a file without blocks on the disk: no tensor is read."""
    LARGE["write_stand_in"](tmp_path, 4096, 40, sparse=True)
    files = sorted(tmp_path.glob("*.safetensors"))
    assert sum(path.stat().st_size for path in files) > 13e9
    assert sum(path.stat().st_blocks for path in files) * 512 < 1e7
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    opened = open_pretrained(tmp_path)
    assert vitswin_jax.create_model("vit_7b_patch16_dinov3").clone(
        global_pool="token", num_classes=0, img_size=224, qkv_bias=False
    ) == opened.model.clone(rope_dtype="float32")
    mesh = create_mesh(data=1, fsdp=4, tensor=2)
    layout = opened.layout(mesh, param_dtype="bfloat16")
    sizes = [leaf.size * leaf.dtype.itemsize for leaf in layout.values()]
    assert sum(sizes) == 2 * (6_716_035_072 - 4096)  # the mask token is left out
    held = [
        2 * np.prod(leaf.sharding.shard_shape(leaf.shape), dtype=int) for leaf in layout.values()
    ]
    assert sum(held) == pytest.approx(sum(sizes) / 8, rel=5e-3)  # vectors are whole everywhere
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 1e9


def test_what_cannot_be_is_one_line(folder):
    other = jax.make_mesh((8,), ("model",))
    with pytest.raises(UserError, match=r"the mesh has the axes model, and must have data, fsdp,"):
        vitswin_jax.load_pretrained(folder, mesh=other)
    with pytest.raises(UserError, match=r"param_dtype='int8' must be one of float32, bfloat16"):
        vitswin_jax.load_pretrained(folder, param_dtype="int8")
    with pytest.raises(UserError, match=r"param_dtype='bflaot16' must be .* mean 'bfloat16'"):
        vitswin_jax.load_pretrained(folder, param_dtype="bflaot16")
    lopsided = create_mesh(data=1, fsdp=3, devices=jax.devices()[:3])
    with pytest.raises(UserError, match=r"mesh.fsdp=3 does not divide axis 3 of patch_embed/"):
        vitswin_jax.load_pretrained(folder, mesh=lopsided)
