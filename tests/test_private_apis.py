"""Every private or experimental name of another package that ours takes is still there.

The names are read from the syntax trees, so that none is forgotten. Where a new version breaks
some, the test lists each with our files that use it.
"""

import ast
import importlib
from collections import defaultdict
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[1] / "vitswin_jax"
UNSTABLE = {"experimental", "extend", "interpreters", "checkpoint_managers", "InterceptorContext"}
BY_INSTANCE = {  # names that ours takes of objects, from which no syntax tree leads to a module
    "jax._src.distributed.global_state.client": "train.hosts.join",
    "jax._src.distributed.global_state.coordinator_address": "train.hosts.join",
    "jax._src.distributed.global_state.num_processes": "train.hosts.join",
    "jax._src.distributed.global_state.process_id": "train.hosts.join",
    "jax._src.clusters.ClusterEnv.get_process_count": "train.hosts.join",
    "jax._src.clusters.ClusterEnv.is_env_present": "train.hosts.join",
    "jax._src.clusters.ClusterEnv.opt_in_only_method": "train.hosts.join",
    "fsspec.AbstractFileSystem._strip_protocol": "data.sources.files",
}


def is_unstable(name):
    parts = name.split(".")
    return parts[0] != "vitswin_jax" and any(
        part in UNSTABLE or (part.startswith("_") and not part.startswith("__")) for part in parts
    )


def names_in(tree):
    """The dotted names of other packages in a module: what it imports, and attributes of that."""
    known = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            known |= {a.asname or a.name: f"{node.module}.{a.name}" for a in node.names}
        elif isinstance(node, ast.Import):
            known |= {
                a.asname or a.name.split(".")[0]: a.name if a.asname else a.name.split(".")[0]
                for a in node.names
            }
    yield from known.values()
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            first, *rest = ast.unparse(node).split(".")
            if first in known and all(part.isidentifier() for part in rest):
                yield ".".join((known[first], *rest))


def find_users():
    """Name -> our modules that take it."""
    users = defaultdict(set)
    for path in sorted(PACKAGE.rglob("*.py")):
        module = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        for name in filter(is_unstable, names_in(ast.parse(path.read_text()))):
            users[name].add(module)
    for name, module in BY_INSTANCE.items():
        users[name].add(module)
    return users


@pytest.fixture(scope="module")
def users():
    return find_users()


def resolve(name):
    """Imports as much of a dotted name as is a module, and gets the rest."""
    first, *rest = name.split(".")
    found = importlib.import_module(first)
    for number, part in enumerate(rest, start=2):
        if not hasattr(found, part):
            importlib.import_module(".".join(name.split(".")[:number]))
        found = getattr(found, part)
    return found


def test_each_is_there(users):
    gone = []
    for name, modules in sorted(users.items()):
        try:
            resolve(name)
        except (ImportError, AttributeError) as error:
            gone.append(f"{name}, which {', '.join(sorted(modules))} takes: {error}")
    assert not gone


def test_the_syntax_trees_are_read_well(users):
    tree = ast.parse(
        "import a.b as c\nimport d\nfrom e import f as g\nc._h.i(g.x)\nd.experimental\nself._own"
    )
    names = set(names_in(tree))
    assert names == {
        "a.b", "d", "e.f", "a.b._h", "a.b._h.i", "e.f.x", "d.experimental"
    }  # fmt: skip
    assert set(filter(is_unstable, names)) == {"a.b._h", "a.b._h.i", "d.experimental"}
    assert {"jax._src.distributed", "pickle._Unpickler.dispatch"} <= set(users)
