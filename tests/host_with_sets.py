"""A host of two slices that saves a set, loses its disk, and gets the set from its neighbour.

Arguments: the coordinator's address, the number of this host, and the folder of its disk.
"""

import logging
import shutil
import sys
import time
from pathlib import Path

import jax
import numpy as np
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from vitswin_jax.train.hosts.join import gather, joined
from vitswin_jax.train.keep.local import LocalSets
from vitswin_jax.train.keep.stored import FINGERPRINT
from vitswin_jax.train.sharding import create_mesh
from vitswin_jax.train.state import TrainState


def run(host, disk):
    """Saves, loses and restores; returns where the set came from."""
    place = NamedSharding(create_mesh(slices=2), P())
    numbers = np.arange(12.0, dtype="f4").reshape(3, 4)
    kernel = jax.make_array_from_callback((3, 4), place, lambda index: numbers[index])
    state = TrainState(np.int32(3), {"kernel": kernel}, {}, None)
    layout = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=place), state
    )

    def opened():
        owner = {"run": "x", "config": "y"}
        return LocalSets(str(disk), Path("run"), owner=owner, data=None, seconds=9.0, total_steps=9)

    sets = opened()
    assert sets.restore(layout, -1) is None
    sets.save(state, {"step": 3, "data": {FINGERPRINT: None}})
    sets.wait()
    while not sets._copies.idle:
        time.sleep(0.01)
    gather("sent")
    sets.close()
    if host == 1:
        shutil.rmtree(disk)
    sets = opened()
    restored, meta = sets.restore(layout, -1)
    sets.close()
    assert meta["step"] == 3
    np.testing.assert_array_equal(np.asarray(restored.params["kernel"]), numbers)


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    address, host, disk = sys.argv[1], int(sys.argv[2]), Path(sys.argv[3])
    with joined(coordinator=address, num_hosts=2, host_index=host, lost_after=10):
        run(host, disk)
