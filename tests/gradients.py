"""Parameters and gradients of tests that compare with an implementation in another framework."""

import math

import numpy as np


def draw_params(rng, shapes):
    """Returns a parameter of each shape, by its name; scales are near 1."""
    params = {}
    for path in sorted(shapes):
        values = 0.3 * rng.standard_normal(shapes[path])
        params[path] = (values + path.endswith(("scale", "gamma"))).astype(np.float32)
    return params


def divide(flat, shapes):
    """Returns gradients by their names from one array of all, in the order of the names."""
    names = sorted(shapes)
    parts = np.split(flat, np.cumsum([math.prod(shapes[path]) for path in names])[:-1])
    return {path: part.reshape(shapes[path]) for path, part in zip(names, parts, strict=True)}


def assert_near(ours, theirs, *, tol):
    """Compares gradients with `tol`, relative to each number and to each parameter's gradient."""
    assert ours.keys() == theirs.keys()
    scale = np.sqrt(np.mean(np.concatenate([g.ravel() for g in theirs.values()]) ** 2))
    for path, grad in theirs.items():
        size = np.sqrt(np.mean(grad**2)) + 0.01 * scale  # keys' biases have none but rounding
        np.testing.assert_allclose(ours[path], grad, atol=tol * size, rtol=tol, err_msg=path)
