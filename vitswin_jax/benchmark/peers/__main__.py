"""A peer's worker: python PATH/__main__.py NAME, in the peer's own interpreter.

The modules of this folder import nothing but the standard library, NumPy and each other before a
peer starts. They are found through this file, so the folder of this package, and the libraries that
are installed beside it, are not on the peer's path.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path


def find_package() -> None:
    """Makes `vitswin_jax` importable by the place of this file."""
    root = Path(__file__).parents[2]
    found = importlib.util.spec_from_file_location(
        root.name, root / "__init__.py", submodule_search_locations=[str(root)]
    )
    assert found is not None and found.loader is not None
    sys.modules[root.name] = module = importlib.util.module_from_spec(found)
    found.loader.exec_module(module)


def main(name: str) -> None:
    """Serves the peer of this name."""
    from vitswin_jax.benchmark.peers import PEERS
    from vitswin_jax.benchmark.peers.serve import serve

    serve(PEERS[name].start, PEERS[name].packages)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder, whose modules are not the peer's
    find_package()
    main(sys.argv[1])
