"""A worker's questions and answers: requests on stdin, answers in JSON lines.

The first line is the job (`cases.Job`); the answer says how long it took to have the model and its
weights (`load_s`), and then to compile and do the first call (`first_s`). Then {"calls": n} is
answered by seconds of a call, each waited for, {"queued": n} by seconds of a call where only the
last is waited for, {"trace": folder} by a profile of one, {} by the peak of memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.metadata
import json
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from vitswin_jax.benchmark.peers.work import Job, Work


def _status(field: str) -> int | None:
    """Returns bytes of memory of this process, where the system says: Linux."""
    path = Path("/proc/self/status")
    if not path.exists():
        return None
    lines = path.read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(field))


def _start(job: Job, start: Callable[[Job], Work]) -> tuple[Work, dict[str, Any]]:
    with np.load(job["inputs"]) as arrays:
        job = {**job, "images": arrays["images"], "labels": arrays["labels"]}
    began = time.perf_counter()
    work = start(job)
    loaded = time.perf_counter()
    first = work.fetch(work.call())
    done = time.perf_counter()
    second = work.fetch(work.call())
    if job["task"] == "train":  # losses before and after the first update
        first = np.stack([first, second])
    np.save(job["outputs"], np.asarray(first, np.float32))
    if _status("VmRSS"):
        with contextlib.suppress(AttributeError):  # of what compiling has left, where glibc is
            ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # from here on VmHWM is the peak
    facts = {"device": work.device, "temporary_bytes": work.temporary_bytes()}
    return work, facts | {"load_s": loaded - began, "first_s": done - loaded}


def _time(work: Work, calls: int, *, queued: bool = False) -> dict[str, float]:
    """Returns the seconds of a call; of `queued` calls only the last is waited for."""
    wall, cpu = time.perf_counter(), time.process_time()
    for number in range(1, calls + 1):
        result = work.call()
        if not queued or number == calls:
            work.fetch(result)
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"wall": wall / calls, "cpu": cpu / calls}


def versions(packages: Sequence[str]) -> dict[str, str]:
    """Returns the versions of the installed ones of these distributions, and of Python.

    A distribution that was built from a repository has the first digits of its commit.
    """
    found = {"python": platform.python_version()}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            distribution = importlib.metadata.distribution(name)
            origin = json.loads(distribution.read_text("direct_url.json") or "{}")
            commit = origin.get("vcs_info", {}).get("commit_id", "")
            found[name] = " ".join(filter(None, [distribution.version, commit[:7]]))
    return found


def serve(start: Callable[[Job], Work], packages: Sequence[str] = ()) -> None:
    """Answers questions until stdin ends; what libraries print goes to stderr."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    work, facts = _start(json.loads(sys.stdin.readline()), start)
    facts["versions"] = versions(packages)
    print(json.dumps(facts), file=answers, flush=True)
    for line in sys.stdin:
        question = json.loads(line)
        if "calls" in question:
            answer: Mapping[str, float | None] = _time(work, question["calls"])
        elif "queued" in question:
            answer = _time(work, question["queued"], queued=True)
        elif "trace" in question:
            answer = {}
            if work.trace is not None:
                with work.trace(question["trace"]):
                    answer = _time(work, 1)
        else:
            on_device = work.peak_bytes()
            answer = {"peak_bytes": _status("VmHWM") if on_device is None else on_device}
        print(json.dumps(answer), file=answers, flush=True)
