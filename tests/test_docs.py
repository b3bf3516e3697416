"""Every page of the documentation is true: its commands run and print what it shows.

How a page is read stands in documents.py. Pages in two languages have equal fences, so that the
English one's are run for both.
"""

import concurrent.futures
import multiprocessing
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))
from documents import read_page
from given import ROOT, follow_page, stand_in

PATHS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PAGES = {path.relative_to(ROOT).as_posix(): path for path in PATHS if ".zh." not in path.name}


@pytest.fixture(scope="module")
def programs(tmp_path_factory):
    """A folder with `python` and `vitswin`, for what a page gives to a shell."""
    folder = tmp_path_factory.mktemp("bin")
    for name, module in (("python", ""), ("vitswin", "-m vitswin_jax.cli ")):
        program = folder / name
        program.write_text(f'#!/bin/sh\nexec {sys.executable} {module}"$@"\n')
        program.chmod(0o755)
    return folder


@pytest.fixture(scope="module")
def follow(tmp_path_factory, programs):
    """Follows pages in one process of its own: with one device, and no rule of the tests'."""
    given = stand_in(tmp_path_factory.mktemp("given"))
    own = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        "MPLBACKEND": "Agg",
        "PYTHONPATH": str(ROOT),
        "VITSWIN_CACHE": str(tmp_path_factory.mktemp("cache")),
    }
    spawn = multiprocessing.get_context("spawn")
    with pytest.MonkeyPatch.context() as patch:
        for name, value in own.items():
            patch.setenv(name, value)
        with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as process:
            yield lambda page, root: process.submit(
                follow_page, page, root, given=given, programs=programs
            ).result()


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_true(name, tmp_path, follow):
    if not any(fence.runs for fence in read_page(PAGES[name]).fences):
        pytest.skip("has nothing that runs here")
    follow(PAGES[name], tmp_path)
