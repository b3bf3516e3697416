"""Models applied in compiled programs: one for each model, options and shapes, in all tests.

Not for tests that exchange a part of the package for another: the program is of the first.
"""

import functools

import jax


@functools.partial(jax.jit, static_argnames=("model", "options"))
def _apply(model, variables, inputs, rngs, options):
    return model.apply(variables, *inputs, rngs=rngs, **dict(options))


def apply(model, variables, *inputs, rngs=None, **options):
    """Returns `model.apply(variables, *inputs, rngs=rngs, **options)`."""
    return _apply(model, variables, inputs, rngs, tuple(sorted(options.items())))
