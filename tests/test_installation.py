"""Makefile, pyproject.toml and constraints/ agree on Python and on the dependencies."""

import os
import re
import shutil
import subprocess
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
VERSIONS = sorted(path.stem for path in (ROOT / "constraints").glob("*.txt"))


def name_of(requirement):
    """The name of a distribution, as an index compares names."""
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


def test_the_versions_of_python_are_the_same_everywhere():
    named = [c.rpartition(" ")[2] for c in PROJECT["classifiers"] if "Python :: 3." in c]
    assert named == VERSIONS
    assert PROJECT["requires-python"] == f">={VERSIONS[0]}"
    for page in ("README.md", "README.zh.md"):
        assert (
            re.findall(r"(?<!\d)3\.1\d\b", (ROOT / page).read_text())[: len(VERSIONS)] == VERSIONS
        )


@pytest.mark.parametrize("version", VERSIONS)
def test_constraints_pin_each_dependency(version):
    lines = (ROOT / "constraints" / f"{version}.txt").read_text().splitlines()
    assert lines[0].startswith(f"# Exact versions for Python {version}, ")
    assert all(re.fullmatch(r"[\w.-]+==[\w.+]+", line) for line in lines[1:])
    pinned = {name_of(line) for line in lines[1:]}
    needed = PROJECT["dependencies"] + PROJECT["optional-dependencies"]["test"]
    assert {name_of(each) for each in needed} - {"vitswin-jax", "setuptools"} <= pinned


@pytest.mark.parametrize("version", VERSIONS)
def test_constraints_leave_room_for_the_clients_of_s3(version):
    """The extra `s3` is not in the pinned environment; its client needs python-dateutil 2."""
    text = (ROOT / "constraints" / f"{version}.txt").read_text(encoding="utf-8")
    pins = dict(line.split("==") for line in text.splitlines()[1:])
    assert pins["python-dateutil"].startswith("2.") and not {"botocore", "s3fs"} & pins.keys()


def test_the_extras_for_accelerators_are_jaxs():
    extras = PROJECT["optional-dependencies"]
    for extra, of_jax in (("gpu", "cuda13"), ("gpu-cuda12", "cuda12"), ("tpu", "tpu")):
        assert [each.partition(">")[0] for each in extras[extra]] == [f"jax[{of_jax}]"]


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(
    ("says", "line"),
    [
        ("3.9", "is Python 3.9. The supported ones are {}. Name one of them: make test PYTHON="),
        ("3.99", "is Python 3.99. The supported ones are {}. Name one of them: make test PYTHON="),
        (None, "is not installed. The supported ones are {}. Name one of them: make test PYTHON="),
        ("3.11", None),
    ],
)
def test_make_says_in_one_line_which_python_it_needs(tmp_path, says, line):
    python = tmp_path / "python"
    if says is not None:
        python.write_text(f"#!/bin/sh\necho {says}\n")
        python.chmod(0o755)
    done = subprocess.run(
        ["make", "--dry-run", "test", f"PYTHON={python}"],
        cwd=ROOT, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip
    if line is None:
        assert done.returncode == 0 and "pytest" in done.stdout
        return
    assert done.returncode == 2
    (said,) = done.stderr.splitlines()
    assert f"{python} {line.format(' '.join(VERSIONS))}python{VERSIONS[-1]}." in said


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize(
    ("has_gpu", "target", "given", "extra"),
    [
        (False, "quickstart", [], None),
        (True, "quickstart", [], "gpu"),
        (True, "quickstart", ["GPU=gpu-cuda12"], "gpu-cuda12"),
        (True, "quickstart", ["GPU="], None),
        (True, "test", [], None),
    ],
)
def test_the_quickstart_runs_on_gpus_where_there_are_any(
    tmp_path, monkeypatch, has_gpu, target, given, extra
):
    folders = [each for each in os.get_exec_path() if not (Path(each) / "nvidia-smi").exists()]
    monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path), *folders]))
    if has_gpu:
        (tmp_path / "nvidia-smi").write_text("#!/bin/sh\n")
        (tmp_path / "nvidia-smi").chmod(0o755)
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho 3.11\n")
    python.chmod(0o755)
    done = subprocess.run(
        ["make", "--dry-run", "--always-make", target, f"PYTHON={python}", *given],
        cwd=ROOT, capture_output=True, text=True, check=True, timeout=60,
    )  # fmt: skip
    installed = re.findall(r"--editable '\.\[(.*?)\]'", done.stdout)
    assert installed == ["test", *([] if extra is None else [extra])]


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


@pytest.mark.skipif(shutil.which("make") is None, reason="there is no make")
@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_workflows_run_targets_of_the_makefile_on_supported_versions(path):
    jobs = yaml.safe_load(path.read_text(encoding="utf-8"))["jobs"]
    versions, targets = set(), set()
    for job in jobs.values():
        assert set(job.get("needs", "test").split()) <= set(jobs)
        matrix = job.get("strategy", {}).get("matrix", {}).get("python", [])
        assert matrix in ([], VERSIONS)
        for step in job["steps"]:
            versions |= {str(step.get("with", {}).get("python-version", VERSIONS[0]))}
            if made := re.match(r"make ([\w-]+)", step.get("run", "")):
                targets.add(made[1])
    assert versions <= {*VERSIONS, "${{ matrix.python }}"}
    assert {"lint", "dist"} <= targets
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets <= set(re.search(r"^\.PHONY: (.*)$", text, re.MULTILINE)[1].split())
