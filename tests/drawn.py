"""Parameters drawn at random, so that no zero hides a part."""

import numpy as np
from flax.traverse_util import unflatten_dict

from vitswin_jax.weights.shapes import parameter_shapes


def draw(model, seed=0, *, scale=0.3):
    """Returns a model's variables, in loop layout: normal with standard deviation `scale`."""
    rng = np.random.default_rng(seed)
    flat = {
        name: rng.normal(size=shape, scale=scale).astype(np.float32)
        for name, shape in parameter_shapes(model).items()
    }
    return {"params": unflatten_dict(flat, sep="/")}
