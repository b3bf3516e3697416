"""The house's own rules: who imports whom (test_configs.py has those of the recipes)."""

import ast
import functools
import graphlib
import re
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "vitswin_jax"
FILES = sorted(PACKAGE.rglob("*.py"))
"""One test reads all of them: 1,800 tests, one per file and rule, take longer than the reading."""

# Room -> the rooms below that it may import. A module may import its own room; nothing imports cli.
ARROWS = {
    "core": "",
    "nn": "core",
    "models": "core nn",
    "data": "core",
    "weights": "core nn models data",
    "train": "core nn models data weights",
    "evaluate": "core nn models data weights",
    "report": "core nn models data weights evaluate",
    "explain": "core nn models data weights report",
    "plan": "core nn models data weights train",
    "export": "core nn models data weights",
    "benchmark": "core nn models data weights train plan export",
    "results": "core nn models data weights train evaluate report explain",
    "trainer": "core nn models data weights train evaluate report results",
    "fitting": "core models data weights train report trainer",
    "__init__": "core models train weights fitting",
    "tune": "core nn models data weights train evaluate report plan results trainer",
    "cli": "core nn models data weights train evaluate report explain plan export benchmark "
    "trainer tune",
}


@functools.cache
def tree_of(path):
    """The syntax tree of a file."""
    return ast.parse(path.read_text())


@pytest.fixture(scope="module", autouse=True)
def trees():
    """Trees are kept while these tests run: half a million objects slow the garbage collector."""
    yield
    tree_of.cache_clear()


def module_name(path):
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts).removesuffix(".__init__")


@functools.cache
def imported_names(path):
    """The modules that a file names, inside functions too."""
    names = []
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            if (PACKAGE.parent / node.module.replace(".", "/")).is_dir():
                names += [f"{node.module}.{alias.name}" for alias in node.names]
            else:
                names.append(node.module)
    return names


def roots_of(path):
    """The packages that a file imports from."""
    return {name.split(".")[0] for name in imported_names(path)}


def imports_of(path):
    """The modules of the package that a file names."""
    for name in imported_names(path):
        if name.startswith("vitswin_jax."):
            yield name.removeprefix("vitswin_jax.")


def target_of(imported):
    """The module that an imported name is, or is in."""
    path = PACKAGE / imported.replace(".", "/")
    return (
        imported
        if path.with_suffix(".py").exists() or path.is_dir()
        else imported.rpartition(".")[0]
    )


def room_of(module):
    return module.split(".")[0] or "__init__"


def test_imports_point_down():
    for path in FILES:
        name = module_name(path) or "__init__"
        assert "configs" not in roots_of(path), f"{path}: nobody imports configs"
        for imported in imports_of(path):
            room = room_of(target_of(imported))
            below = (room_of(name), *ARROWS[room_of(name)].split())
            assert room in below, f"{name} imports {imported}"


def test_no_modules_import_each_other():
    graph = {
        module_name(path): {target_of(imported) for imported in imports_of(path)}
        - {module_name(path)}
        for path in FILES
    }
    order = list(graphlib.TopologicalSorter(graph).static_order())  # raises CycleError
    assert set(graph) <= set(order)


def test_the_rooms_have_an_order():
    order = list(
        graphlib.TopologicalSorter({a: b.split() for a, b in ARROWS.items()}).static_order()
    )
    assert order[0] == "core"


@pytest.mark.parametrize("name", ["core.types", "core.version", "models.variants"])
def test_leaves_do_not_import_jax(name):
    path = (PACKAGE / name.replace(".", "/")).with_suffix(".py")
    assert not roots_of(path) & {"jax", "flax"}


def test_images_are_opened_by_listed_decoders():
    """Pillow's EPS reader starts a program (tests/data/test_bad_images.py)."""
    for path in FILES:
        for node in ast.walk(tree_of(path)):
            if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("Image.open"):
                keywords = [keyword.arg for keyword in node.keywords]
                assert "formats" in keywords, f"{path}: {ast.unparse(node)}"


def classes_tested(tree):
    """The names of the classes that a file tests for: isinstance, issubclass or `type(x) is`."""
    for node in ast.walk(tree):
        tested = []
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            tested = node.args[1:] if node.func.id in ("isinstance", "issubclass") else []
        elif isinstance(node, ast.Compare) and "type(" in ast.unparse(node):
            tested = [node.left, *node.comparators]
        yield from (part.id for x in tested for part in ast.walk(x) if isinstance(part, ast.Name))


def test_no_tool_tests_for_a_family():
    """Tools ask a model for its geometry. UnlabelledModel is a kind of training."""
    for path in FILES:
        if room_of(module_name(path)) == "models":
            continue
        families = {
            alias.asname or alias.name
            for node in ast.walk(tree_of(path))
            if isinstance(node, ast.ImportFrom) and node.module.startswith("vitswin_jax.models.")
            for alias in node.names
            if node.module != "vitswin_jax.models.geometry" and alias.name != "UnlabelledModel"
        }
        tested = set(classes_tested(tree_of(path)))
        assert not families & tested, f"{path}: tests for a model's family"


def test_data_workers_need_no_jax_of_ours():
    for path in (PACKAGE / "data").rglob("*.py"):
        assert not roots_of(path) & {"jax", "flax"}, path


def texts_without_encoding(tree):
    """Calls that read or write text in the locale's encoding, which may be ASCII."""
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or any(key.arg == "encoding" for key in node.keywords):
            continue
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        modes = [getattr(arg, "value", None) for arg in node.args]
        is_text = name == "open" and any(mode in ("r", "w", "a", "x", "r+", "w+") for mode in modes)
        method = isinstance(node.func, ast.Attribute)
        if is_text or (name in ("read_text", "write_text", "fdopen") and method):
            yield ast.unparse(node)


def test_text_files_are_utf_8():
    for path in FILES:
        if room_of(module_name(path)) not in ("benchmark", "models"):  # whose texts are ASCII
            assert not list(texts_without_encoding(tree_of(path))), path


DOOR = PACKAGE / "core" / "terminal.py"


def ways_round_the_door(tree):
    """What prints or logs without `core.terminal`: a call or an import, as it is written."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            names = {getattr(node, "module", None), *(alias.name for alias in node.names)}
            if "tqdm" in names:
                yield ast.unparse(node)
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        files = [ast.unparse(key.value) for key in node.keywords if key.arg == "file"]
        own_logger = called == "logging.getLogger" and ast.unparse(node.args[0]) == "__name__"
        says_at_exit = called == "sys.exit" and any(
            isinstance(arg, ast.JoinedStr) or isinstance(getattr(arg, "value", 0), str)
            for arg in node.args
        )
        if (
            (called in ("print", "input", "logging.StreamHandler") and files != ["answers"])
            or called
            in ("warnings.warn", "sys.stdout.write", "sys.stderr.write", "argparse.ArgumentParser")
            or own_logger
            or says_at_exit
        ):
            yield ast.unparse(node)


def test_what_is_shown_passes_one_door():
    """Names of files may have escapes; core/terminal.py shows them escaped."""
    for path in [ROOT / "train.py", *FILES]:
        assert path == DOOR or not list(ways_round_the_door(tree_of(path))), path


def test_the_door_is_watched():
    code = (
        "import tqdm; from tqdm import tqdm; warnings.warn(x); print(name); sys.exit(f'{name}'); "
        "sys.exit('x'); logging.getLogger(__name__); logging.StreamHandler(); "
        "argparse.ArgumentParser(); sys.stderr.write(name)"
    )
    assert len(list(ways_round_the_door(ast.parse(code)))) == 10
    fine = "print(x, file=answers); sys.exit(main()); logging.getLogger('absl'); say(name)"
    assert not list(ways_round_the_door(ast.parse(fine)))


def test_arrays_with_shapes_are_checked_in_tests():
    """pyproject.toml lists the modules whose annotations pytest checks: all that use jaxtyping."""
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]
    listed = re.search(r"--jaxtyping-packages=(\S+)", options["ini_options"]["addopts"])[1].split(
        ","
    )
    checked = tuple(name for name in listed if name != "beartype.beartype")
    used = [
        f"vitswin_jax.{module_name(path)}" for path in FILES if "jaxtyping" in imported_names(path)
    ]
    assert len(used) > 50
    missing = [name for name in used if not f"{name}.".startswith(tuple(f"{x}." for x in checked))]
    assert not missing
