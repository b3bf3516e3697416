"""Scripts of benchmarks/ as modules."""

import contextlib
import importlib.util
import sys
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "benchmarks"


@contextlib.contextmanager
def script(name):
    """Gives a script as a module; pickle finds its functions until the block ends."""
    sys.path.insert(0, str(FOLDER))  # as of a script that runs
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = sys.modules[name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    yield module
    del sys.modules[name]
    sys.path.remove(str(FOLDER))
